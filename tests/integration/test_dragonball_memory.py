"""A stock kernel in the in-process machine: much memory, huge pages, memory that it gives back, processors.

`make test-rig` runs this where a KVM runs unmodified guests.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kata_hypervisor.contract import Disk
from scripted_guest import BUDGET, ScriptedGuest

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(300)]

MIB = 1 << 20
RESERVED = Path("/proc/sys/vm/nr_hugepages")
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@contextmanager
def setting(path: Path, value: str) -> Iterator[None]:
    """A setting of the host's kernel, for some time; skips where it cannot be had."""
    try:
        before = path.read_text()
        path.write_text(value)
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}")
    chosen = re.search(r"\[(\w+)\]", before)
    try:
        yield
    finally:
        path.write_text(chosen[1] if chosen else before)


def memory_of(guest: ScriptedGuest) -> dict[str, int]:
    """The kernel's word about the guest's memory in this process, in KiB by name."""
    assert guest.machine._machine is not None
    start = f"{guest.machine._machine.memory.address:x}-"
    _, _, rest = Path("/proc/self/smaps").read_text().partition(f"\n{start}")
    entry = re.split(r"\n[0-9a-f]+-[0-9a-f]+ ", rest, maxsplit=1)[0]
    return {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", entry, re.MULTILINE)}


def allocated(guest: ScriptedGuest) -> int:
    """Bytes of the guest's memory that the host has given it."""
    assert guest.machine._machine is not None
    return os.fstat(guest.machine._machine.memory.descriptor).st_blocks * 512


async def test_memory_beyond_the_gap_and_eight_processors(tmp_path: Path) -> None:
    script = 'echo "processors: $(nproc)"\nread -r word total unit </proc/meminfo\necho "$word $total $unit"'
    guest = ScriptedGuest(tmp_path, script)
    guest.spec = replace(guest.spec, vcpus=8, memory_mib=5120)
    async with guest:
        await guest.says("processors: 8")
        await guest.says("the script is done")
        total = re.search(r"MemTotal: (\d+) kB", guest.machine.console_tail)
    assert total is not None
    assert 5120 * 1024 * 0.95 < int(total[1]) < 5120 * 1024


async def test_reserved_huge_pages(tmp_path: Path) -> None:
    with setting(RESERVED, "128"):
        if RESERVED.read_text().strip() != "128":
            pytest.skip("the host's memory has no room for 128 huge pages")
        guest = ScriptedGuest(tmp_path, "echo up", enable_hugepages=True)
        async with guest:
            await guest.says("up")
            assert memory_of(guest)["KernelPageSize"] == 2048


async def test_transparent_huge_pages(tmp_path: Path) -> None:
    with setting(TRANSPARENT, "advise"):
        guest = ScriptedGuest(tmp_path, "echo up")
        async with guest:
            await guest.says("up")
            assert memory_of(guest)["ShmemPmdMapped"] > 0


FILL = """
mount -t tmpfs -o size=300m none /mnt
dd if=/dev/zero of=/mnt/file bs=1M count=200 2>/dev/null
echo "filled"
plugged vda
rm /mnt/file
echo "freed"
"""


async def test_what_the_guest_frees_comes_back_to_the_host(tmp_path: Path) -> None:
    guest = ScriptedGuest(tmp_path, FILL, reclaim_guest_freed_memory=True)
    guest.spec = replace(guest.spec, memory_mib=512, spare_disks=1)
    signal = tmp_path / "signal"
    signal.write_bytes(bytes(512))
    async with guest:
        await guest.says("filled")
        filled = allocated(guest)
        assert filled > 200 * MIB
        await guest.machine.add_disk(Disk("signal", signal, read_only=True))
        await guest.says("freed")
        async with asyncio.timeout(BUDGET):
            while allocated(guest) > filled - 150 * MIB:  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0.1)
