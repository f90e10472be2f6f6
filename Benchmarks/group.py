#!/usr/bin/env python3
"""How long a guest's writes wait while two disks of 20 GiB in all are captured at one moment, by softdpu on XFS.

usage: group.py YCLOUD [GiB written to each disk]

Both disks are written from their beginning, as an image is, and then all the time at random by fio over NBD, 4 KiB at a
time, eight under way. The file system lives in a sparse file below /var/tmp and goes at the end.
"""
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROW = "{:<52} {:>14}   {}"
SIZE = 10
ROUNDS = 15


class Refused(Exception):
    pass


def call(path, method, parameters):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        begin = time.monotonic()
        client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode())
        answer = json.loads(client.recv(65536))
        took = (time.monotonic() - begin) * 1000
    if "error" in answer:
        raise Refused(f"{method}: {answer['error']}", answer["error"].get("code"))
    return answer["result"], took


def job(folder, text):
    path = folder / "job.fio"
    path.write_text("[global]\nioengine=nbd\n" + text)
    return ["fio", "--output-format=json", str(path)]


def uri(folder, name):
    return f"uri=nbd+unix:///?socket={folder / f'{name}.sock'}\n"


def measure(rpc, folder, pool, written):
    for name in ("a", "b"):
        with open(pool / f"{name}.img", "wb") as image:
            image.truncate(SIZE << 30)
        call(rpc, "bdev_aio_create", {"name": name, "filename": str(pool / f"{name}.img"), "block_size": 512})
        call(rpc, "nbd_start_disk", {"bdev_name": name, "nbd_device": str(folder / f"{name}.sock")})
    fill = "".join(f"[{name}]\n{uri(folder, name)}rw=write\nbs=1m\niodepth=4\nsize={written}g\n" for name in ("a", "b"))
    subprocess.run(job(folder, fill), capture_output=True, check=True)
    subprocess.run(["sync", "-f", str(pool)], check=True)
    load = "".join(f"[{name}]\n{uri(folder, name)}rw=randwrite\nbs=4k\niodepth=8\nsize={written}g\n"
                   f"time_based\nruntime=600\n" for name in ("a", "b"))
    writer = subprocess.Popen(job(folder, load), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        pauses, whole, late = [], [], 0
        for number in range(ROUNDS):
            try:
                answer, took = call(rpc, "bdev_snapshot_files", {
                    "folder": str(pool / "groups" / f"g{number}"),
                    "files": [{"name": name, "file": f"{name}.img"} for name in ("a", "b")]})
            except Refused as error:
                if error.args[1] != -110:
                    raise
                # It would have kept back writes for longer than a second, and was given up.
                late += 1
                continue
            pauses.append(answer["pause_us"] / 1000)
            whole.append(took)
            shutil.rmtree(pool / "groups" / f"g{number}")
            time.sleep(0.3)
        print("    pause: " + " ".join(f"{value:.1f}" for value in pauses) + f" ms; given up {late}")
        first = f"{pauses[0]:.1f}" if pauses else "> 1000"
        longest = f"{max(pauses):.1f}" if pauses and not late else "> 1000"
        print(ROW.format(f"two disks captured, {2 * SIZE} GiB: writes wait (ms)", first, "<= 300"))
        # Each write after a snapshot splits a file a little more, and a clone takes time for each piece.
        print(ROW.format(f"  the longest of {ROUNDS}, written to at random meanwhile", longest, ""))
        if whole:
            print(ROW.format("  the whole call (ms)", f"{max(whole):.1f}", ""))
    finally:
        writer.terminate()
        writer.wait(timeout=20)


def main():
    ycloud = sys.argv[1]
    written = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ycloud-group.", dir="/var/tmp"))
    pool = folder / "pool"
    process = None
    if shutil.disk_usage(folder).free < (3 * written + 5) << 30:
        print(ROW.format("two disks captured", "not measured", f"{folder} has less than {3 * written + 5} GiB"))
        folder.rmdir()
        return
    try:
        pool.mkdir()
        with open(folder / "pool.xfs", "wb") as image:
            image.truncate(4 * SIZE << 30)
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(folder / "pool.xfs")], check=True)
        subprocess.run(["mount", "-o", "loop", str(folder / "pool.xfs"), str(pool)], check=True)
        rpc = folder / "rpc"
        process = subprocess.Popen([ycloud, "softdpu", "--rpc-socket", str(rpc), "--vhost-dir", str(folder / "bus"),
                                    "--log-level", "error"])
        deadline = time.monotonic() + 10
        while not rpc.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        measure(rpc, folder, pool, written)
    finally:
        if process:
            process.terminate()
            process.wait(timeout=20)
        subprocess.run(["umount", str(pool)], stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


main()
