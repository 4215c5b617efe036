"""QEMU's memory as it is configured: the host's huge pages, and all of it before the guest runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
PAGES = 128
"""What a guest of 256 MiB takes."""


def number(name: str) -> int:
    """One of the host's numbers of huge pages."""
    return int((POOL / f"{name}_hugepages").read_text())


@contextmanager
def reserved(pages: int) -> Iterator[None]:
    """Huge pages that nobody uses; skips where this host has none to reserve."""
    before = number("nr")
    try:
        (POOL / "nr_hugepages").write_text(str(before + pages))
    except OSError as error:
        pytest.skip(f"{POOL}: {error.strerror}")
    try:
        if number("nr") < before + pages:
            pytest.skip(f"this host's memory has no room for {pages} huge pages in one piece each")
        yield
    finally:
        (POOL / "nr_hugepages").write_text(str(before))


def memory_of(pid: int) -> dict[str, int]:
    """The kernel's word about the guest's memory in QEMU, in KiB by name."""
    _, _, rest = Path(f"/proc/{pid}/smaps").read_text().partition("/memfd:memory-backend-memfd")
    lines = (line.split() for line in rest.partition("VmFlags")[0].splitlines()[1:])
    return {name.rstrip(":"): int(size) for name, size, *_ in lines if size.isdecimal()}


@contextmanager
def machine(node: Node, name: str, **keys: bool) -> Iterator[dict[str, int]]:
    """A pod whose QEMU has 256 MiB for its guest; the kernel's word about them."""
    path = node.configuration(name, default_memory=256, **keys)
    with node.running("sleep", "100000", options=("--runtime-config-path", path)) as client:
        yield memory_of(node.pids(client.container)["qemu"])


def test_huge_pages_hold_the_guests_memory_and_are_given_back(node: Node) -> None:
    with reserved(PAGES):
        free = number("free")
        with machine(node, "huge", enable_hugepages=True) as memory:
            assert memory["KernelPageSize"] == 2048
            assert number("free") - number("resv") == free - PAGES
        node.until(lambda: number("free") - number("resv") == free, "the huge pages are free")


def test_too_few_huge_pages_are_a_sentence_before_qemu_starts(node: Node) -> None:
    left = number("free") - number("resv")
    if left >= PAGES:
        pytest.skip(f"this host has {left} huge pages to spare")
    path = node.configuration("huge-missing", default_memory=256, enable_hugepages=True)
    result = node.run("true", options=("--runtime-config-path", path))
    assert result.returncode != 0
    assert f"cannot give the guest {PAGES} huge pages of 2 MiB: this host has {left} left" in result.stderr


def test_memory_that_is_allocated_before_the_guest_runs(node: Node) -> None:
    with machine(node, "allocated", enable_mem_prealloc=True) as memory:
        assert memory["Rss"] == memory["Size"] == 256 * 1024
