#!/usr/bin/env python3
"""Snapshots and clones of a thin volume of 100 GiB with 10 GiB written, by softdpu on XFS with reflink.

usage: clone.py YCLOUD [GiB of the volume] [GiB written]

The file system lives in a sparse file below /var/tmp, which takes as much room as is written and goes at the end. The
volume is written through softdpu, by fio over NBD, a piece of 1 MiB in each 10 MiB, so that it has thousands of extents.
"""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROW = "{:<52} {:>14}   {}"


def call(path, method, parameters):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        begin = time.monotonic()
        client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode())
        answer = json.loads(client.recv(65536))
        took = (time.monotonic() - begin) * 1000
    if "error" in answer:
        sys.exit(f"clone.py: {method}: {answer['error']}")
    return answer["result"], took


def main():
    ycloud = sys.argv[1]
    size, written = (int(text) for text in (sys.argv[2:] + ["100", "10"][len(sys.argv) - 2:])[:2])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ycloud-clone.", dir="/var/tmp"))
    pool = folder / "pool"
    process = None
    if shutil.disk_usage(folder).free < (written + 5) << 30:
        print(ROW.format("clone of a thin volume", "not measured", f"{folder} has less than {written + 5} GiB"))
        folder.rmdir()
        return
    try:
        pool.mkdir()
        with open(folder / "pool.xfs", "wb") as image:
            image.truncate((2 * size + 10) << 30)
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(folder / "pool.xfs")], check=True)
        subprocess.run(["mount", "-o", "loop", str(folder / "pool.xfs"), str(pool)], check=True)
        rpc = folder / "rpc"
        process = subprocess.Popen([ycloud, "softdpu", "--rpc-socket", str(rpc), "--vhost-dir", str(folder / "bus"),
                                    "--log-level", "error"])
        deadline = time.monotonic() + 10
        while not rpc.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        call(rpc, "bdev_aio_create", {"name": "pool", "filename": str(pool), "block_size": 512})
        call(rpc, "bdev_lvol_create_lvstore", {"bdev_name": "pool", "lvs_name": "s"})
        call(rpc, "bdev_lvol_create",
             {"lvs_name": "s", "lvol_name": "v", "size_in_mib": size << 10, "thin_provision": True})
        call(rpc, "nbd_start_disk", {"bdev_name": "s/v", "nbd_device": str(folder / "nbd")})
        gap = size * 1024 // (written * 1024) - 1
        job = folder / "job.fio"
        job.write_text(f"[job]\nioengine=nbd\nuri=nbd+unix:///?socket={folder / 'nbd'}\nrw=write:{gap}m\nbs=1m\n"
                       f"iodepth=8\nsize={size}g\nio_size={written}g\nrefill_buffers=0\n")
        begin = time.monotonic()
        subprocess.run(["fio", "--output-format=json", str(job)], capture_output=True, check=True)
        used = shutil.disk_usage(pool).used >> 20
        print(f"  wrote {written} GiB over {size} GiB in {time.monotonic() - begin:.0f} s; the pool holds {used} MiB")
        snapshots, clones = [], []
        for number in range(5):
            _, took = call(rpc, "bdev_lvol_snapshot", {"lvol_name": "s/v", "snapshot_name": f"s{number}"})
            snapshots.append(took)
            _, took = call(rpc, "bdev_lvol_clone", {"snapshot_name": f"s/s{number}", "clone_name": f"c{number}"})
            clones.append(took)
        for name, times in (("snapshot", snapshots), ("clone", clones)):
            print(ROW.format(f"{name} of {size} GiB thin, {written} GiB written, worst of 5 (ms)", f"{max(times):.1f}",
                             "<= 100"))
    finally:
        if process:
            process.terminate()
            process.wait(timeout=20)
        subprocess.run(["umount", str(pool)], stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


main()
