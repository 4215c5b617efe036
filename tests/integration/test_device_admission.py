"""A cgroup whose processes may open one more device, while it is opened and not afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_runtime.broker.cgroups import _DeviceProgram, _Lines, hierarchies
from kata_runtime.broker.device_rules import CHARACTER, DeviceRule, lines, of_node

pytestmark = pytest.mark.integration

NODES = ("/dev/null", "/dev/zero", "/dev/full")


@pytest.fixture(params=[1, 2])
def leaf(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A cgroup that controls devices, of each version; skips where there is none to be had."""
    mounted = [each for each in hierarchies() if each.version == 2 or "devices" in each.controllers]
    root = next((each.mountpoint for each in mounted if each.version == request.param), None)
    if root is None or os.geteuid() != 0:
        pytest.skip(f"needs root, and cgroups of version {request.param}")
    made = Path(root, f"kata-admission-{os.getpid()}")
    made.mkdir()
    yield made
    made.rmdir()


@contextmanager
def restricted(leaf: Path, rules: list[DeviceRule]) -> Iterator[_Lines | _DeviceProgram]:
    """The restriction of a cgroup to these rules."""
    if (leaf / "devices.allow").exists():
        (leaf / "devices.deny").write_text("a")
        for line in lines(rules):
            (leaf / "devices.allow").write_text(line)
        yield _Lines(str(leaf), rules)
        return
    program = _DeviceProgram(str(leaf), rules)
    if program.lacking:
        pytest.skip(program.lacking)
    yield program
    os.close(program._attached)


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
    with restricted(leaf, of_node("/dev/null")) as program:
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


def test_what_another_rule_allows_stays_allowed(leaf: Path) -> None:
    """A device that is shown to the VMM, and meanwhile opened once more."""
    with restricted(leaf, of_node("/dev/null")) as program:
        shown, once = DeviceRule(CHARACTER, 1, 5, "rm"), DeviceRule(CHARACTER, 1, 5, "r")
        for first, second in ((shown, once), (once, shown)):
            program.admit(first)
            program.admit(second)
            program.expel(second)
            assert opened(leaf) == ["/dev/null", "/dev/zero"]
            program.expel(first)
            assert opened(leaf) == ["/dev/null"]
        program.admit(again := DeviceRule(CHARACTER, 1, 3, "r"))
        program.expel(again)
        assert opened(leaf) == ["/dev/null"]
