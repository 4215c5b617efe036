"""What a pod holds of containers that ended: descriptors of its virtiofsd, and space of the host.

A container of a pod on QEMU runs, writes a file, deletes it while it has it open, and ends, again and again,
as one that crashes does. In the end no more is held than after the first time: else the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from kata_runtime.containerd_api import types_pb2
from shim_harness import Lab
from shim_pod import Pod

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
MIB = 1 << 20
DISK = 512
"""MiB: more than a container writes, less than all of them do."""
SCRIPT = "ls -R /bin /etc >/dev/null; exec 3>/big; dd if=/dev/zero bs=64k count={count} >&3 2>&-; rm /big"


def descriptors(pod: Pod) -> int:
    """How many the pod's virtiofsd has."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pod.pids("virtiofsd"))


def disk(lab: Lab) -> Path:
    """A file system of its own for what the containers write: others write to the host's meanwhile."""
    mountpoint = lab.snapshots / "disk"
    mountpoint.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "disk", mountpoint], check=True)
    return mountpoint


def overlay(lab: Lab, disk: Path, name: str) -> types_pb2.Mount:
    """A root file system whose writable layer is on that disk."""
    home = disk / name
    for part in ("upper", "work"):
        (home / part).mkdir(parents=True)
    options = [f"lowerdir={lab.rootfs}", f"upperdir={home}/upper", f"workdir={home}/work"]
    return types_pb2.Mount(type="overlay", source="overlay", options=options)


def free(disk: Path) -> int:
    """MiB that are free on it."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize // MIB


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--mib", type=int, default=16, help="size of the file that each deletes")
    options = parser.parse_args()
    lab = Lab(IMAGE)
    place = disk(lab)
    async with lab.sink:
        pod = await Pod.start(lab)
        seen: list[tuple[int, int]] = []
        for number in range(options.restarts + 1):
            name = f"restart-{number}"
            rootfs = [overlay(lab, place, name)]
            await pod.run("sh", "-c", SCRIPT.format(count=16 * options.mib), rootfs=rootfs)
            shutil.rmtree(place / name)  # as containerd deletes the snapshot
            await anyio.sleep(0.2)  # its last words to the file server have no answer
            seen.append((descriptors(pod), free(place)))
            if number % 10 == 0:
                print(f"after {number:3} restarts: {seen[-1][0]:5} descriptors, {seen[-1][1]:7} MiB free")
        await pod.shim.close()
        await lab.close()
    await anyio.run_process(["umount", str(place)])
    lab.remove()
    held, space = seen[-1][0] - seen[0][0], seen[0][1] - seen[-1][1]
    print(f"held after {options.restarts} restarts: {held} descriptors, {space} MiB")
    return 1 if held > 0 or space > 0 else 0


if __name__ == "__main__":
    sys.exit(anyio.run(main))
