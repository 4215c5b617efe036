"""Children under a filter of ours: the gate, what the kernel reports, the refusal, and what is left."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker_bed import Bed, make_bed, wait_for_end
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.confinement import inherited_filters
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.seal import build_broker
from kata_hypervisor.solo5 import allowlist
from kata_runtime import syscalls
from kata_runtime.broker import cleanup
from kata_runtime.broker.client import Broker
from kata_runtime.broker.process import fork_broker
from old_tender import build_old_tender

GATE, FILE = 3, 4


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


@asynccontextmanager
async def broker_of(bed: Bed) -> AsyncIterator[Broker]:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    try:
        yield broker
    finally:
        assert await broker.close() == []


@pytest.fixture
def tender(tmp_path: Path) -> str:
    return str(build_old_tender(tmp_path))


def filter_for(tender: str) -> ChildFilter:
    return allowlist.build(tender, f"/proc/self/fd/{FILE}", [])


async def started(broker: Broker, tender: str, line: str, output: int, gate: int) -> Child:
    fds = {1: output, 2: output, GATE: gate, FILE: gate}
    return await broker.spawn("solo5-hvt", [tender, line], fds=fds, gate=GATE, seccomp=filter_for(tender))


async def run(bed: Bed, tender: str, line: str) -> tuple[ExitStatus | None, str, bytes]:
    """How it exits, what was refused to it, and what it printed."""
    reader, writer = os.pipe()
    gate, opener = os.pipe()
    async with broker_of(bed) as broker:
        child = await started(broker, tender, line, writer, gate)
        os.close(writer)
        os.close(gate)
        (thread,) = await broker.confinement(child)
        assert (thread.mode, thread.filters) == (2, inherited_filters() + 1)
        os.write(opener, b"\n")
        os.close(opener)
        status = await child.wait()
        violation = child.violation
    with os.fdopen(reader, "rb") as pipe:
        return status, violation, pipe.read()


async def test_a_child_passes_its_gate_and_ends(bed: Bed, tender: str) -> None:
    assert await run(bed, tender, "echo output") == (ExitStatus(code=0), "", b"echo output")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving up capabilities needs root")
@pytest.mark.parametrize("features", [[], ["loading"]])
async def test_a_child_loads_when_the_broker_has_given_up_all_but_that(
    bed: Bed, tender: str, features: list[str]
) -> None:
    gate, opener = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    async with broker_of(bed) as broker:
        child = await started(broker, tender, "echo output", null, gate)
        assert broker.later == {"loading"}
        await broker.confine(build_broker(features, "enforce", broker.pid).code, features)
        os.write(opener, b"\n")
        status = await child.wait()
        assert status == (ExitStatus(code=0) if features else ExitStatus(signal=signal.SIGKILL))
        assert bool(child.violation) != bool(features)
    for fd in (gate, opener, null):
        os.close(fd)


async def test_a_refused_call_is_reported_to_the_shim_and_in_the_log(bed: Bed, tender: str) -> None:
    log = bed.bundle / "log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    status, violation, printed = await run(bed, tender, "socket")
    assert (status, printed) == (ExitStatus(signal=signal.SIGKILL), b"")
    assert violation.startswith("seccomp: solo5-hvt called socket (41) when it had loaded")
    line = os.read(reader, 65536).decode()
    assert "level=error" in line
    assert "solo5-hvt called socket (41)" in line
    os.close(reader)


async def test_a_gate_that_closes_ends_the_child(bed: Bed, tender: str) -> None:
    gate, opener = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    async with broker_of(bed) as broker:
        child = await started(broker, tender, "echo output", null, gate)
        for fd in (gate, opener, null):
            os.close(fd)
        assert await child.wait() == ExitStatus(code=127)
        assert child.violation == ""


async def test_a_gate_is_one_of_the_descriptors(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        with pytest.raises(LaunchError, match="descriptor 9 cannot be a gate"):
            await broker.spawn("solo5-hvt", ["/bin/true"], fds={}, gate=9)


async def test_a_child_whose_paths_are_not_looked_at_has_a_root_of_its_own(bed: Bed, tender: str) -> None:
    free = filter_for(tender)
    free.any_path = True
    async with broker_of(bed) as broker:
        with pytest.raises(LaunchError, match="paths are not looked at needs a root of its own"):
            await broker.spawn("solo5-hvt", [tender, "echo"], fds={}, seccomp=free)


async def test_a_filter_that_does_not_let_it_start_is_reported(bed: Bed, tender: str) -> None:
    usual = filter_for(tender)
    few = compile_rules([Rule(("write", "exit_group", "read"))], actions.NOTIFY)
    narrow = ChildFilter("narrow", "none", few.code, few.code, usual.last)
    async with broker_of(bed) as broker:
        with pytest.raises(LaunchError, match="cannot start solo5-hvt: seccomp: solo5-hvt called close"):
            await broker.spawn("solo5-hvt", [tender, "echo"], fds={}, seccomp=narrow)


async def test_a_program_that_the_kernel_does_not_take_is_reported(bed: Bed, tender: str) -> None:
    wrong = ChildFilter("wrong", "none", b"\xff" * 8, filter_for(tender).loading, (1, 2))
    async with broker_of(bed) as broker:
        with pytest.raises(LaunchError, match="cannot start solo5-hvt: cannot install the seccomp filter"):
            await broker.spawn("solo5-hvt", [tender, "echo"], fds={}, seccomp=wrong)


async def test_a_listener_that_cannot_be_had_is_reported(
    bed: Bed, tender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, fd: int) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "take_descriptor", refuse)
    async with broker_of(bed) as broker:
        with pytest.raises(
            LaunchError, match=r"pidfd_getfd: Operation not permitted; .*ptrace_scope below 3"
        ):
            await broker.spawn("solo5-hvt", [tender, "echo"], fds={}, seccomp=filter_for(tender))


async def test_once_sealed_nothing_is_started_filtered_or_not(bed: Bed, tender: str) -> None:
    gate, opener = os.pipe()
    async with broker_of(bed) as broker:
        child = await started(broker, tender, "spin", opener, gate)
        await broker.announce_seal(mode="log", policy="p")
        for seccomp in (None, filter_for(tender)):
            with pytest.raises(LaunchError, match="spawn is refused after the seal"):
                await broker.spawn("solo5-hvt", [tender, "echo"], fds={}, seccomp=seccomp)
        assert [thread.mode for thread in await broker.confinement(child)] == [2]
        os.close(gate)
        os.close(opener)


async def test_a_child_dies_with_its_broker_and_not_unsupervised(bed: Bed, tender: str) -> None:
    gate, opener = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    child = await started(broker, tender, "spin", null, gate)
    os.write(opener, b"\n")
    os.kill(broker.pid, signal.SIGKILL)
    assert await child.wait() == ExitStatus(signal=signal.SIGKILL)
    await broker.close()
    for fd in (gate, opener, null):
        os.close(fd)
    wait_for_end(child.pid)
    assert cleanup.clean_up(bed.identity) == []
