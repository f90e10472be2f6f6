#!/usr/bin/env python3
"""NBD: softdpu, nbdkit's file plugin and qemu-storage-daemon, driven by fio's nbd engine in turns of one run.

usage: nbd.py YCLOUD [seconds of each measurement]

4 KiB random reads and writes at depth 32, one connection over a unix socket, a 1 GiB file on tmpfs. fio itself takes a
whole processor at these rates: where all three wait for it, the ratio of operations tells little, and the processor time
of the server for each operation tells all.
"""
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

TURNS = 3


def cpu(pid):
    """Processor time of a process so far, in microseconds."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000 / os.sysconf("SC_CLK_TCK")


def wait_for(path):
    deadline = time.monotonic() + 10
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            sys.exit(f"nbd.py: {path} did not appear")
        time.sleep(0.02)


def call(path, method, parameters):
    import socket
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode())
        answer = json.loads(client.recv(65536))
    if "error" in answer:
        sys.exit(f"nbd.py: {method}: {answer['error']}")


def measure(folder, uri, pid, direction, seconds):
    job = folder / "job.fio"
    job.write_text(
        f"[job]\nioengine=nbd\nuri={uri}\nrw={direction}\nbs=4k\niodepth=32\ntime_based\nruntime={seconds}\nsize=1G\n")
    before = cpu(pid)
    run = subprocess.run(["fio", "--output-format=json", str(job)], capture_output=True, text=True, check=True)
    used = cpu(pid) - before
    result = json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]
    operations = result["read"]["total_ios"] + result["write"]["total_ios"]
    return result["read"]["iops"] + result["write"]["iops"], used / operations


def make_certificates(folder):
    """A folder of certificates as nbdkit and libnbd want them."""
    def openssl(*arguments):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             *arguments], cwd=folder, check=True, capture_output=True)
    folder.mkdir()
    openssl("-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=ca")
    openssl("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-keyout", "server-key.pem", "-out", "server-cert.pem", "-subj",
            "/CN=localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=DNS:localhost")


def copy(uri, other, pid, direction):
    """Mebibytes a second, and microseconds of the server's processor for each mebibyte, of one copy of the whole disk."""
    before, start = cpu(pid), time.monotonic()
    source, destination = (uri, "null:") if direction == "read" else (other, uri)
    subprocess.run(["nbdcopy", "--connections=1", "--requests=16", source, destination], check=True)
    return 1024 / (time.monotonic() - start), (cpu(pid) - before) / 1024


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    ycloud, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ycloud-nbd."))
    file = pathlib.Path(f"/dev/shm/{folder.name}")
    source = pathlib.Path(f"/dev/shm/{folder.name}.source")
    started = []

    def start(*command):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        return process.pid

    try:
        with open(file, "wb") as disk:
            for _ in range(1024):
                disk.write(os.urandom(1 << 20))
        sockets = {name: str(folder / f"{name}.sock") for name in ("softdpu", "nbdkit", "qemu-storage-daemon")}
        pids = {
            "softdpu": start(ycloud, "softdpu", "--rpc-socket", str(folder / "rpc"), "--vhost-dir", str(folder / "bus"),
                             "--log-level", "error"),
            "nbdkit": start("nbdkit", "--foreground", "-U", sockets["nbdkit"], "file", str(file)),
            "qemu-storage-daemon": start(
                "qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,aio=io_uring,filename={file}",
                "--nbd-server", f"addr.type=unix,addr.path={sockets['qemu-storage-daemon']}", "--export",
                "type=nbd,id=disk,node-name=disk,writable=on,name="),
        }
        # The same over TLS.
        certificates = folder / "pki"
        make_certificates(certificates)
        secure = {name: str(folder / f"{name}.tls") for name in ("softdpu", "nbdkit")}
        secure_pids = {
            "softdpu": pids["softdpu"],
            "nbdkit": start("nbdkit", "--foreground", "-U", secure["nbdkit"], "--tls=require",
                            f"--tls-certificates={certificates}", "file", str(file)),
        }
        wait_for(folder / "rpc")
        call(str(folder / "rpc"), "bdev_aio_create",
             {"name": "disk", "filename": str(file), "block_size": 512, "fallocate": True})
        call(str(folder / "rpc"), "nbd_start_disk", {"bdev_name": "disk", "nbd_device": sockets["softdpu"]})
        call(str(folder / "rpc"), "nbd_start_disk",
             {"bdev_name": "disk", "nbd_device": secure["softdpu"], "tls_mode": "required",
              "tls_certificate": str(certificates / "server-cert.pem"), "tls_key": str(certificates / "server-key.pem")})
        for path in [*sockets.values(), *secure.values()]:
            wait_for(path)
        for direction in ("randread", "randwrite"):
            results = {name: [] for name in sockets}
            for _ in range(TURNS):
                for name, path in sockets.items():
                    uri = f"nbd+unix:///?socket={path}"
                    results[name].append(measure(folder, uri, pids[name], direction, seconds))
            median = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in results.items()}
            for name, (rate, cost) in median.items():
                print(f"  NBD {direction} depth 32, {name}: {rate:,.0f} IOPS, {cost:.2f} us of server CPU per I/O")
            ours, kit, qemu = median["softdpu"], median["nbdkit"], median["qemu-storage-daemon"]
            row = "{:<52} {:>14}   {}"
            print(row.format(f"NBD {direction}, IOPS against nbdkit (ratio)", f"{ours[0] / kit[0]:.2f}", ">= 1.3"))
            print(row.format(f"NBD {direction}, CPU per I/O against nbdkit (ratio)", f"{ours[1] / kit[1]:.2f}", "<= 0.8"))
            print(row.format(f"NBD {direction}, IOPS against qemu-storage-daemon", f"{ours[0] / qemu[0]:.2f}", ">= 3"))
        shutil.copy(file, source)
        for direction in ("read", "write"):
            results = {name: [] for name in secure}
            for _ in range(TURNS):
                for name, path in secure.items():
                    uri = f"nbds+unix:///?socket={path}&tls-certificates={certificates}"
                    results[name].append(copy(uri, str(source), secure_pids[name], direction))
            median = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in results.items()}
            for name, (rate, cost) in median.items():
                print(f"  NBD over TLS, {direction}, {name}: {rate:,.0f} MiB/s, {cost:,.0f} us of server CPU per MiB")
            ours, kit = median["softdpu"], median["nbdkit"]
            print(row.format(f"NBD over TLS, {direction}, rate against nbdkit (ratio)", f"{ours[0] / kit[0]:.2f}", ">= 1.0"))
            print(row.format(f"NBD over TLS, {direction}, CPU per byte against nbdkit", f"{ours[1] / kit[1]:.2f}", "<= 1.0"))
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(timeout=10)
        file.unlink(missing_ok=True)
        source.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


main()
