"""A cgroup of version 2 whose processes may open one more device, while it is opened and not afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.broker.cgroups import _DeviceProgram
from kata_runtime.broker.device_rules import CHARACTER, DeviceRule, of_node

pytestmark = pytest.mark.integration

NODES = ("/dev/null", "/dev/zero", "/dev/full")


@pytest.fixture
def leaf() -> Iterator[Path]:
    """A cgroup of version 2; skips where there is none to be had."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    root = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if root is None or os.geteuid() != 0:
        pytest.skip("needs root, and cgroups of version 2")
    made = Path(root, f"kata-admission-{os.getpid()}")
    made.mkdir()
    yield made
    made.rmdir()


def opened(leaf: Path) -> list[str]:
    """Which of the nodes a process of the cgroup can open."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        for node in NODES:
            try:
                os.close(os.open(node, os.O_RDONLY))
                os.write(writer, f"{node} ".encode())
            except PermissionError:
                pass
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        return file.read().split()


def test_a_device_is_admitted_and_expelled(leaf: Path) -> None:
    program = _DeviceProgram(str(leaf), of_node("/dev/null"))
    if program.lacking:
        pytest.skip(program.lacking)
    zero = DeviceRule(CHARACTER, 1, 5, "r")
    assert opened(leaf) == ["/dev/null"]
    program.admit(zero)
    assert opened(leaf) == ["/dev/null", "/dev/zero"]
    program.expel(zero)
    assert opened(leaf) == ["/dev/null"]
    full = DeviceRule(CHARACTER, 1, 7, "r")
    program.admit(zero)
    program.admit(full)
    program.expel(full)
    assert opened(leaf) == ["/dev/null", "/dev/zero"]  # one that stays is not lost with another
    os.close(program._attached)
