"""The in-process machine as a program, for benchmarks: its process is what the shim's would be.

Says "loaded" when its modules are; reads a line of JSON that describes a machine; says "runs CID" when its
guest runs; and when its input ends, saves the machine if it was given a place, ends it, and says "counted
JSON".
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from contenders import CACHE, GUEST_MAC, QUEUE_SIZE, TAP

from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_hypervisor.contract import Disk, SharedDirectory, Tap, VmSpec
from kata_hypervisor.dragonball import driver, exits, processors
from kata_hypervisor.dragonball.driver import Dragonball
from kata_hypervisor.kvm import abi
from local_host import LocalHost
from tables import make_table

REASONS = {abi.KVM_EXIT_IO: "port", abi.KVM_EXIT_MMIO: "memory", abi.KVM_EXIT_INTR: "interrupted"}


class Meter:
    """Counts the exits that reach Python, and the time that it takes for them."""

    def __init__(self) -> None:
        self.exits: Counter[str] = Counter()
        self.seconds = 0.0

    def handle(self, run: abi.KvmRun, page: memoryview, bus: Any) -> str | None:
        """Stands where exits.handle is called."""
        begin = time.perf_counter()
        self.exits[REASONS.get(run.exit_reason, "other")] += 1
        ended = exits.handle(run, page, bus)
        self.seconds += time.perf_counter() - begin
        return ended


class BenchHost(LocalHost):
    """Remembers the guest's vsock id."""

    cid = 0

    async def register_guest(self, address: int | str) -> None:
        """See Host."""
        await super().register_guest(address)
        self.cid = int(address)


def specification(given: dict[str, Any]) -> VmSpec:
    """The machine that the line of JSON describes."""
    path = {name: Path(given[name]) if given[name] else None for name in ("image", "disk")}
    places: dict[str, Any] = {name: Path(given[name]) for name in ("template", "saved_to") if given[name]}
    return VmSpec(
        sandbox_id="bench",
        directory=Path(given["directory"]),
        vcpus=given["vcpus"],
        memory_mib=given["memory_mib"],
        kernel=Path(given["kernel"]),
        initrd=Path(given["initrd"]),
        image=path["image"],
        shared=SharedDirectory(Path(given["shared"])),
        disks=(Disk("disk", path["disk"]),) if path["disk"] else (),
        taps=tuple(Tap("net", TAP, GUEST_MAC, (fd,)) for fd in given["taps"]),
        **places,
    )


def say(text: str) -> None:
    """Tell the parent."""
    print(text, flush=True)


async def main() -> None:
    """Run one machine until the input ends."""
    meter = Meter()
    pytest.MonkeyPatch().setattr(processors, "handle", meter.handle)
    say("loaded")
    given = json.loads(await anyio.to_thread.run_sync(sys.stdin.readline))
    driver.KERNEL_PARAMETERS = (*given["parameters"], "pci=off")
    daemon = next(one for one in VIRTIOFSD_PLACES if one.exists())
    table = make_table(
        DragonballTable,
        kernel=Path(given["kernel"]),
        virtio_fs_daemon=daemon,
        virtio_fs_cache=CACHE,
        virtio_fs_queue_size=QUEUE_SIZE,
    )
    host = BenchHost()
    machine = Dragonball(table, host)
    spec = specification(given)
    try:
        await machine.prepare(spec)
        await machine.run()
        say(f"runs {host.cid}")
        await anyio.to_thread.run_sync(sys.stdin.readline)
        if spec.saved_to is not None:
            await machine.pause()
            await machine.snapshot(spec.saved_to)
        counted = {**meter.exits, "python_seconds": meter.seconds}
    finally:
        await machine.stop()
        await host.aclose()
    say(f"counted {json.dumps(counted)}")


if __name__ == "__main__":
    anyio.run(main)
