"""The in-process machine beside QEMU's microvm and q35: boot, devices, memory; all in one run, in turn.

    make bench-rig                      in the rig, or on a KVM that runs unmodified guests
    make bench-rig ARGS='--rounds 1'    a trial

Two guests for each machine and round: the guest image, up to its agent's first answer; and one whose only
program does what load.c says, on a disk, a shared directory, vsock and a tap with vhost-net. Disks and files
are in the host's memory: what is measured is the way to them. Prints a table in Markdown, and JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from contenders import (
    CONTENDERS,
    GUEST_ADDRESS,
    OURS,
    PREFIX,
    QEMU,
    Running,
    Setting,
    exits_of,
    memory_of,
    order,
    scratch,
)
from report import BOOT, RESTORE, Row, markdown

from kata_agent.client import AgentClient
from kata_agent.protos import health_pb2
from kata_agent.transports import VsockTransport, dial_vsock
from kata_hypervisor.contract import SHARED_DIRECTORY_TAG
from kata_hypervisor.dragonball.driver import Dragonball
from kata_runtime.image import cpio
from kata_runtime.image.tree import Tree

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
LOAD = Path(__file__).with_name("load.c")
PORT = "1024"
PATIENCE = 120.0
DEBUG = Path("/sys/kernel/debug")

MIB = 1 << 20
DISK_MIB = FILE_MIB = 64

INIT = f"""#!/bin/busybox sh
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
busybox mkdir /shared
mount -t virtiofs {SHARED_DIRECTORY_TAG} /shared
busybox ip link set lo up
busybox ip address add {GUEST_ADDRESS}/{PREFIX} dev eth0
busybox ip link set eth0 up
exec /load serve {PORT}
"""


@dataclass(frozen=True, slots=True)
class Work:
    """Something for the guest to do. scale: what a count is worth, in the row's unit for a second."""

    row: Row
    scale: float
    request: tuple[str, ...]
    over_network: bool = False


def _file(row: str, path: str, verb: str, order: str, size: int) -> Work:
    unit, scale = ("MiB/s", size / MIB) if size >= MIB else ("requests/s", 1.0)
    return Work(Row(row, unit), scale, ("file", path, verb, order, str(size)))


WORKS = (
    _file("virtio-blk, 4 KiB random read", "/dev/vda", "read", "random", 4096),
    _file("virtio-blk, 4 KiB random write", "/dev/vda", "write", "random", 4096),
    _file("virtio-blk, 1 MiB sequential read", "/dev/vda", "read", "sequential", MIB),
    _file("virtio-blk, 1 MiB sequential write", "/dev/vda", "write", "sequential", MIB),
    _file("fs, 1 MiB sequential read", "/shared/file", "read", "sequential", MIB),
    _file("fs, 1 MiB sequential write", "/shared/file", "write", "sequential", MIB),
    Work(Row("vsock, guest to host", "MiB/s"), 1 / MIB, ("send",)),
    Work(Row("vsock, host to guest", "MiB/s"), 1 / MIB, ("receive",)),
    Work(Row("vsock, round trips of a byte", "/s"), 1.0, ("echo",)),
    Work(Row("net, guest to host", "MiB/s"), 1 / MIB, ("send",), over_network=True),
    Work(Row("net, host to guest", "MiB/s"), 1 / MIB, ("receive",), over_network=True),
)
EXITS = Row("exits until then, all of them", "", smaller=True, budget=None)
PRIVATE = Row("private memory of the process, without the guest's", "MiB", smaller=True, budget=None)
PROPORTIONAL = Row("proportional memory of it", "MiB", smaller=True, budget=None)

Results = dict[str, dict[str, list[float]]]
"""By row and machine, a number for each round."""


def make_load(directory: Path) -> Path:
    """Compile the program for guest and host."""
    program = directory / "load"
    subprocess.run(["gcc", "-O2", "-Wall", "-static", "-o", str(program), str(LOAD)], check=True)
    return program


def make_initrd(program: Path) -> Path:
    """The image's initramfs, whose init is replaced: what comes later in an archive wins."""
    tree = Tree()
    tree.file("init", INIT.encode(), 0o755)
    tree.file("load", program.read_bytes(), 0o755)
    initrd = program.with_name("initrd")
    initrd.write_bytes((IMAGE / "kata-initrd.img").read_bytes() + cpio.pack(tree))
    return initrd


async def first_answer(running: Running) -> float:
    """Seconds from the machine's start to its agent's first answer."""
    transport = VsockTransport(dial_vsock(running.cid), f"guest {running.cid}")
    agent = await AgentClient.connect(transport, interval=0.02, deadline=PATIENCE, timeout=PATIENCE)
    try:
        await agent.check(health_pb2.CheckRequest())
        return time.monotonic() - running.begun
    finally:
        await agent.aclose()
        await transport.aclose()


def boot(name: str, directory: Path, results: Results) -> Mapping[str, float]:
    """Boot the guest image once; return what the machine has counted."""
    setting = _setting(directory)
    with CONTENDERS[name](setting, directory) as running:
        results[BOOT.name][name].append(anyio.run(first_answer, running))
        results[EXITS.name][name].append(exits_of(running.pid))
        memory = memory_of(running.pid)
        results[PRIVATE.name][name].append(memory["private_mib"])
        results[PROPORTIONAL.name][name].append(memory["proportional_mib"])
        return running.finish()


def restore(directory: Path, results: Results) -> None:
    """Let our machine begin where another was saved, which is made the first time."""
    template = directory / "template"
    if not template.exists():
        template.mkdir()
        with CONTENDERS[OURS](_setting(directory, saved_to=template), directory) as running:
            anyio.run(first_answer, running)
            running.finish()
    with CONTENDERS[OURS](_setting(directory, template=template), directory) as running:
        results[RESTORE][OURS].append(anyio.run(first_answer, running))
        running.finish()


def _setting(directory: Path, *, template: Path | None = None, saved_to: Path | None = None) -> Setting:
    """The guest image."""
    image, shared = IMAGE / "kata-image.erofs", directory / "shared"
    return Setting(
        IMAGE / "vmlinuz",
        IMAGE / "kata-initrd.img",
        shared,
        image=image,
        template=template,
        saved_to=saved_to,
    )


def load(name: str, directory: Path, milliseconds: int, results: Results) -> None:
    """Let a guest do all the works, one after the other."""
    shared, program = directory / "shared", directory / "load"
    for path, size in ((directory / "disk", DISK_MIB), (shared / "file", FILE_MIB)):
        path.write_bytes(os.urandom(MIB) * size)
    setting = Setting(IMAGE / "vmlinuz", directory / "initrd", shared, disk=directory / "disk", network=True)
    with CONTENDERS[name](setting, directory) as running:
        _await(program, running)
        for work in WORKS:
            where = GUEST_ADDRESS if work.over_network else str(running.cid)
            count, seconds = _ask(program, where, (*work.request, str(milliseconds)))
            results[work.row.name][name].append(count * work.scale / seconds)
        running.finish()


def _await(program: Path, running: Running) -> None:
    """Wait until the guest obeys."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            _ask(program, str(running.cid), ("echo", "1"))
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _ask(program: Path, where: str, request: Sequence[str]) -> tuple[int, float]:
    command = [str(program), "ask", where, PORT, *request]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    count, nanoseconds = done.stdout.split()
    return int(count), int(nanoseconds) / 1e9


def host() -> str:
    """What this was measured on, in a line."""
    hypervisor = " (emulated)" if "QEMU TCG" in Path("/proc/cpuinfo").read_text() else ""
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return (
        f"{os.cpu_count()} CPUs{hypervisor}, {platform.machine()}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, QEMU {version.split()[3]}"
    )


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--milliseconds", type=int, default=1000, help="for each work (%(default)s)")
    arguments = parser.parse_args()
    if not (DEBUG / "kvm").exists():
        subprocess.run(["mount", "-t", "debugfs", "debugfs", str(DEBUG)], check=True)
    results: Results = defaultdict(lambda: defaultdict(list))
    counted: list[Mapping[str, float]] = []
    with scratch() as directory:
        (directory / "shared").mkdir()
        make_initrd(make_load(directory))
        for number in range(arguments.rounds):
            for name in order(number):
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
                mine = boot(name, directory, results)
                if name == OURS:
                    counted.append(mine)
                    if Dragonball.capabilities.snapshot:
                        restore(directory, results)
                load(name, directory, arguments.milliseconds, results)
    rows = [BOOT, EXITS, *(work.row for work in WORKS), PRIVATE, PROPORTIONAL]
    print(json.dumps({"host": host(), "rounds": arguments.rounds, "results": results, "counted": counted}))
    print(f"\n{markdown(host(), rows, results, counted)}")


if __name__ == "__main__":
    main()
