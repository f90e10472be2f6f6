"""Somebody else's client of a machine's console: scenarios, whose findings are printed as one line of JSON."""

import base64
import json
import os
import socket
import ssl
import struct
import sys
import time
from urllib.parse import urlparse

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

scenario, api_server, own_server, authority, token, path = sys.argv[1:7]
context = ssl.create_default_context(cafile=authority)
# Threads of the client read and write one connection at the same time, which Python before 3.13 does not guard: what TLS
# 1.3 sends after its handshake made requests get lost.
context.maximum_version = ssl.TLSVersion.TLSv1_2
PLAIN = "console.iaas.yusur.io"


def open_console(user, query="", protocols=(PLAIN,), server=api_server, **more):
    url = server.replace("https://", "wss://") + path + query
    headers = {"Authorization": f"Bearer {token}"}
    if user:
        headers["Impersonate-User"] = user
    return connect(url, ssl=context, additional_headers=headers, subprotocols=list(protocols) or None,
                   compression=None, **more)


class Console:
    """Collects what comes: bytes of the console, and notices about the session."""

    def __init__(self, *args, **kwargs):
        self.socket = open_console(*args, **kwargs)
        self.bytes = b""
        self.notices = []
        self.start = None

    def place(self):
        """The place after the last byte that came."""
        epoch, offset = self.start.split(".")
        return f"{epoch}.{int(offset) + len(self.bytes)}"

    def until(self, condition, limit=15):
        end = time.monotonic() + limit
        while not condition(self):
            message = self.socket.recv(timeout=max(0.01, end - time.monotonic()))
            if isinstance(message, bytes):
                self.bytes += message
            else:
                self.notices.append(json.loads(message))
                self.start = self.start or self.notices[-1].get("place")
        return self

    def notice(self, kind):
        return next((n for n in self.notices if n["type"] == kind), None)

    def text(self):
        return self.bytes.decode(errors="replace")


def status_of(*args, **kwargs):
    try:
        open_console(*args, **kwargs).close()
        return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code


def share():
    alice = Console("alice").until(lambda c: b"login" in c.bytes)
    result = {"history": alice.text()}
    carol = Console("carol").until(lambda c: b"login" in c.bytes)
    alice.socket.send(b"ls")
    result["echo"] = alice.until(lambda c: b"ls" in c.bytes).text()
    result["bobSees"] = carol.until(lambda c: b"ls" in c.bytes).text()
    carol.socket.send(b"rm")
    result["refused"] = carol.until(lambda c: c.notice("refused")).notice("refused")["reason"]
    alice.notices.clear()
    carol.socket.send(json.dumps({"type": "takeover"}))
    carol.until(lambda c: any(n["type"] == "writer" and n["you"] for n in c.notices))
    carol.socket.send(b"id")
    result["taken"] = carol.until(lambda c: b"id" in c.bytes).text()
    result["told"] = alice.until(lambda c: c.notice("writer")).notice("writer")["user"]

    # Alice goes away, and comes back to where she was.
    alice.until(lambda c: b"id" in c.bytes)
    place = alice.place()
    alice.socket.close()
    carol.socket.send(b"while away")
    carol.until(lambda c: b"while away" in c.bytes)
    back = Console("alice", f"?since={place}").until(lambda c: b"while away" in c.bytes)
    result["resumed"] = back.notice("hello")["resumed"]
    result["missed"] = back.text()
    carol.socket.close()

    channels = Console("alice", protocols=["v4.channel.k8s.io"])
    channels.until(lambda c: b"login" in c.bytes)
    channels.socket.send(b"\x00channel")
    result["channels"] = channels.until(lambda c: b"you typed channel" in c.bytes).bytes.decode(errors="replace")
    result["view"] = status_of("bob")
    result["other"] = status_of("mallory")
    result["unspoken"] = status_of("alice", protocols=["v9.channel.k8s.io"])
    return result


class Raw:
    """A WebSocket by hand, at bm-api's own door, which does what no client should."""

    def __init__(self, receive=None):
        url = urlparse(own_server)
        plain = socket.socket()
        plain.settimeout(15)
        if receive:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        plain.connect((url.hostname, url.port))
        self.socket = context.wrap_socket(plain, server_hostname=url.hostname)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((
            f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {token}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.socket.recv(1)
            if not piece:
                raise EOFError(head)
            head += piece
        self.status = int(head.split()[1])

    def frame(self, first, payload=b"", masked=True, length=None, more=b""):
        length = len(payload) if length is None else length
        bit = 0x80 if masked else 0
        head = bytes([first])
        if length < 126:
            head += bytes([bit | length])
        elif length < 65536:
            head += bytes([bit | 126]) + struct.pack(">H", length)
        else:
            head += bytes([bit | 127]) + struct.pack(">Q", length)
        self.socket.sendall(head + (b"\0\0\0\0" if masked else b"") + payload + more)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError()
            data += piece
        return data

    def close_code(self):
        """The status with which the server ends it; 0 where it just goes."""
        try:
            while True:
                first, second = self.exactly(2)
                length = second & 0x7F
                if length == 126:
                    length = struct.unpack(">H", self.exactly(2))[0]
                elif length == 127:
                    length = struct.unpack(">Q", self.exactly(8))[0]
                payload = self.exactly(length)
                if first & 0x0F == 8:
                    return struct.unpack(">H", payload[:2])[0]
        except (EOFError, OSError):
            return 0


def breaches():
    """What no client may do, on whatever kind of line: with which status each is closed."""
    giant = Raw()
    giant.frame(0x82, b"", length=1 << 40)
    unmasked = Raw()
    unmasked.frame(0x82, b"hello", masked=False)
    return {"giant": giant.close_code(), "unmasked": unmasked.close_code()}


def abuse():
    witness = Console("alice").until(lambda c: b"login" in c.bytes)
    result = {}
    result |= breaches()
    raw = Raw()
    raw.frame(0x02, b"a")
    raw.frame(0x82, b"b")
    result["fragments"] = raw.close_code()
    for _ in range(20):
        raw = Raw()
        raw.socket.sendall(os.urandom(4096))
        raw.close_code()
    result["garbage"] = True
    raw = Raw()
    began = time.monotonic()
    raw.socket.settimeout(20)
    raw.close_code()
    result["silent"] = time.monotonic() - began < 18
    raw.socket.close()
    # So many of one user's, and no more. A session that has just ended may count for a moment longer.
    deadline = time.monotonic() + 20
    while True:
        crowd = [Raw() for _ in range(12)]
        alive = 0
        for raw in crowd:
            raw.socket.settimeout(1.0)
            first, second = raw.exactly(2)
            alive += first & 0x0F == 1
        for raw in crowd:
            raw.socket.close()
        if alive >= 8 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    result["crowd"] = alive
    # Connections that say nothing do not keep out those who do.
    url = urlparse(own_server)
    silent = []
    for _ in range(300):
        try:
            silent.append(socket.create_connection((url.hostname, url.port), timeout=5))
        except OSError:
            pass
    witness.socket.send(b"still here")
    result["witness"] = witness.until(lambda c: b"still here" in c.bytes).text()
    open_sockets = 0
    for s in silent:
        s.settimeout(0.05)
        try:
            if s.recv(1) != b"":
                open_sockets += 1
        except (TimeoutError, socket.timeout):
            open_sockets += 1
        except OSError:
            pass
    result["strangers"] = open_sockets <= 20
    return result


def forward():
    """A connection to a port, whose other end sends back what it gets, and "bye" at the end."""
    protocol = "portforward.iaas.yusur.io"
    end = '{"type":"end"}'
    witness = open_console("alice", protocols=[protocol])
    result = {}
    for server in (api_server, own_server):
        line = open_console(None if server == own_server else "alice", protocols=[protocol], server=server)
        line.send(b"hel")
        line.send(b"lo")
        line.send(end)
        data, result["ended"] = b"", False
        try:
            while True:
                message = line.recv(timeout=15)
                if isinstance(message, bytes):
                    data += message
                else:
                    result["ended"] = json.loads(message) == {"type": "end"}
        except ConnectionClosed as closed:
            result["status"] = closed.rcvd.code
        result["echo"] = data.decode()
    result |= breaches()
    raw = Raw()
    # At once, so that the machine's end does not come between them.
    raw.frame(0x81, end.encode(), more=b"\x82\x84\0\0\0\0more")
    result["afterTheEnd"] = raw.close_code()
    raw = Raw()
    raw.frame(0x81, b'{"type":"takeover"}')
    result["words"] = raw.close_code()
    for _ in range(10):
        raw = Raw()
        raw.socket.sendall(os.urandom(4096))
        raw.close_code()
    # One that goes without a word.
    Raw().socket.close()
    try:
        open_console("alice", protocols=["v4.channel.k8s.io"])
    except InvalidStatus as refused:
        result["unspoken"] = refused.response.status_code
    witness.send(b"still here")
    data = b""
    while len(data) < 10:
        data += witness.recv(timeout=15)
    result["witness"] = data.decode()
    witness.close()
    return result


def silence():
    """A connection whose client answers no ping."""
    raw = Raw()
    raw.socket.settimeout(20)
    return {"status": raw.close_code()}


def notices():
    """A reader who takes nothing, while the line goes to and fro between two others."""
    alice = Console("alice").until(lambda c: b"login" in c.bytes)
    carol = Console("carol").until(lambda c: b"login" in c.bytes)
    slow = Raw(receive=4096)
    # More than the kernel keeps for it.
    for number in range(160):
        alice.bytes = carol.bytes = b""
        alice.socket.send(b"x" * 60_000)
        for console in (alice, carol):
            console.until(lambda c: len(c.bytes) >= 60_000)
    turns = 0
    end = time.monotonic() + 40
    while turns < 80 and time.monotonic() < end:
        # Each of them may take it over four times a second.
        time.sleep(0.15)
        taker = (carol, alice)[turns % 2]
        taker.notices.clear()
        taker.socket.send(json.dumps({"type": "takeover"}))
        taker.until(lambda c: c.notices)
        turns += any(n["type"] == "writer" and n["you"] for n in taker.notices)
    slow.socket.settimeout(10)
    try:
        while slow.socket.recv(1 << 16):
            pass
        cut = True
    except (TimeoutError, socket.timeout):
        cut = False
    except OSError:
        cut = True
    alice.socket.send(b"still here")
    return {"turns": turns, "cut": cut,
            "witness": alice.until(lambda c: b"still here" in c.bytes).bytes.count(b"still here")}


def stingy():
    """Clients that take no answers, and some whom nobody knows."""
    url = urlparse(own_server)

    def open_connection():
        plain = socket.socket()
        plain.settimeout(15)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            plain.setsockopt(socket.SOL_SOCKET, option, 8192)
        plain.connect((url.hostname, url.port))
        return context.wrap_socket(plain, server_hostname=url.hostname)

    result = {}
    stranger = open_connection()
    stranger.sendall(f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
    data = b""
    while part := stranger.recv(4096):
        data += part
    result["stranger"] = data.split(b"\r\n")[0].decode()
    # One who asks on and on, and reads nothing, is not read any more.
    line = open_connection()
    line.settimeout(5)
    request = f"GET /openapi/v2 HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    asked, end = 0, time.monotonic() + 40
    result["stopped"] = False
    while time.monotonic() < end:
        try:
            line.sendall(request)
            asked += 1
            # Time for the answer: two requests at once are refused anyway.
            time.sleep(0.01)
        except OSError:
            result["stopped"] = True
            break
    result["asked"] = asked
    # Bytes behind the head of an upgrade that is refused.
    line = open_connection()
    line.settimeout(5)
    head = f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    result["flood"] = False
    try:
        line.sendall(head.encode())
        end = time.monotonic() + 20
        while time.monotonic() < end:
            line.sendall(b"x" * (1 << 16))
    except OSError:
        result["flood"] = True
    return result


print(json.dumps({
    "share": share, "abuse": abuse, "forward": forward, "silence": silence, "notices": notices, "stingy": stingy,
}[scenario]()))
