#!/usr/bin/env python3
"""Snapshots and clones of a thin volume of 100 GiB with 10 GiB written, by softdpu on XFS with reflink.

usage: clone.py YCLOUD [GiB of the volume] [GiB written]

The file system lives in a sparse file below /var/tmp, which takes as much room as is written and goes at the end. The
volumes are written through softdpu, by fio over NBD: one from its beginning, as an image is, and one in pieces of 1 MiB
all over it. The worst of five is shown.
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


def measure(rpc, folder, pool, size, written, gap, target):
    """A new volume of `size` GiB, of which `written` GiB are written in pieces of 1 MiB, `gap` MiB apart."""
    name = f"v{gap}"
    call(rpc, "bdev_lvol_create",
         {"lvs_name": "s", "lvol_name": name, "size_in_mib": size << 10, "thin_provision": True})
    socket_path = folder / f"{name}.sock"
    call(rpc, "nbd_start_disk", {"bdev_name": f"s/{name}", "nbd_device": str(socket_path)})
    job = folder / "job.fio"
    job.write_text(f"[job]\nioengine=nbd\nuri=nbd+unix:///?socket={socket_path}\nrw=write{f':{gap}m' if gap else ''}\n"
                   f"bs=1m\niodepth=4\nsize={size}g\nio_size={written}g\nrefill_buffers=0\n")
    begin = time.monotonic()
    subprocess.run(["fio", "--output-format=json", str(job)], capture_output=True, check=True)
    took = time.monotonic() - begin
    uuid = call(rpc, "bdev_get_bdevs", {"name": f"s/{name}"})[0][0]["uuid"]
    # What was written is on the disk before the clock runs: the loop device has a cache of its own.
    subprocess.run(["sync", "-f", str(pool)], check=True)
    subprocess.run(["sync", str(folder / "pool.xfs")], check=True)
    layout = subprocess.run(["xfs_bmap", str(pool / "lvols" / f"{uuid}.img")], capture_output=True, text=True).stdout
    extents = sum(1 for line in layout.splitlines()[1:] if "hole" not in line)
    print(f"  wrote {written} GiB of {size} GiB in {took:.0f} s; the file has {extents} extents")
    snapshots, clones = [], []
    for number in range(5):
        _, took = call(rpc, "bdev_lvol_snapshot", {"lvol_name": f"s/{name}", "snapshot_name": f"{name}s{number}"})
        snapshots.append(took)
        _, took = call(rpc, "bdev_lvol_clone", {"snapshot_name": f"s/{name}s{number}", "clone_name": f"{name}c{number}"})
        clones.append(took)
    for kind, times in (("snapshot", snapshots), ("clone", clones)):
        print(f"    {kind}: " + " ".join(f"{value:.1f}" for value in times) + " ms")
        print(ROW.format(f"{kind}, {size} GiB thin, {written} GiB in {extents} extents (ms)", f"{max(times):.1f}", target))


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
        measure(rpc, folder, pool, size, written, 0, "<= 100")
        # The file system takes over the pieces of a file one by one: what matters is how many there are.
        measure(rpc, folder, pool, size, 1, size - 1, "")
    finally:
        if process:
            process.terminate()
            process.wait(timeout=20)
        subprocess.run(["umount", str(pool)], stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


main()
