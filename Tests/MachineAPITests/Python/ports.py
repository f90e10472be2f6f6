"""Somebody's programs at a forwarded port: scenarios, whose findings are printed as one line of JSON."""

import hashlib
import json
import os
import select
import socket
import sys
import threading

scenario, port = sys.argv[1], int(sys.argv[2])


def connect():
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def echo(line, pieces):
    """Sends pieces and ends, while it reads what comes back, and returns the sums of both."""
    sent, got, count = hashlib.sha256(), hashlib.sha256(), 0

    def write():
        for piece in pieces:
            sent.update(piece)
            line.sendall(piece)
        line.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    while part := line.recv(1 << 20):
        got.update(part)
        count += len(part)
    writer.join()
    line.close()
    sent.update(b"bye\n")
    return {"same": sent.digest() == got.digest(), "count": count}


def transfer():
    """64 MiB each way, at the same time."""
    return echo(connect(), (os.urandom(1 << 20) for _ in range(64)))


def crowd():
    """50 connections, all open at the same time before any of them ends."""
    lines = [connect() for _ in range(50)]
    for number, line in enumerate(lines):
        line.sendall(b"%02d" % number)
    open_at_once = sum(line.recv(2, socket.MSG_WAITALL) == b"%02d" % number for number, line in enumerate(lines))
    results = [None] * len(lines)

    def run(number):
        results[number] = echo(lines[number], [bytes([number]) * 100_000] * 4)["same"]

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(lines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"open": open_at_once, "same": results.count(True)}


def refused():
    """Is told by the end of the connection, with no byte."""
    line = connect()
    try:
        return {"end": line.recv(1) == b""}
    except ConnectionResetError:
        return {"end": True}


def vanish():
    """Breaks off in the middle: the other side must not take it for an end."""
    line = connect()
    line.sendall(b"half")
    assert line.recv(4, socket.MSG_WAITALL) == b"half"
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line.close()
    return {"gone": True}


def broken():
    """Waits for the other side to break off."""
    line = connect()
    line.sendall(b"half")
    assert line.recv(4, socket.MSG_WAITALL) == b"half"
    print("open", flush=True)
    try:
        line.recv(1)
        return {"reset": False}
    except ConnectionResetError:
        return {"reset": True}


print(json.dumps({"transfer": transfer, "crowd": crowd, "refused": refused, "vanish": vanish,
                  "broken": broken}[scenario]()))
