"""What every monitor of unikernels promises, tried on every one of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

import unikernel_subjects as subjects
from kata_hypervisor.contract import NetTap, UnikernelMonitor
from kata_hypervisor.errors import HypervisorError, LaunchError, NotSupportedError, UnikernelError
from kata_hypervisor.host import ExitStatus
from unikernel_subjects import Bench

Mark = Callable[[str], None]
BUDGET = 60


@pytest.fixture(params=subjects.parameters())
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench; afterwards no process and no descriptor of its unikernel is left."""
    before = len(os.listdir("/proc/self/fd"))
    bench = subjects.SUBJECTS[request.param](tmp_path)
    try:
        yield bench
        assert [child.name for child in bench.host.children.values() if child.exited is None] == []
    finally:
        await bench.close()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


class Running:
    """A unikernel that has printed that it spins, for the time of a `with`."""

    def __init__(self, bench: Bench) -> None:
        self.monitor = bench.make()
        self._bench = bench

    async def __aenter__(self) -> UnikernelMonitor:
        await self.monitor.prepare(self._bench.spec_for("spin"))
        await self.monitor.run()
        async with asyncio.timeout(BUDGET):
            while not (said := self._bench.printed()):  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0.01)
        assert said == b"spinning\n"
        return self.monitor

    async def __aexit__(self, *_: object) -> None:
        await self.monitor.stop()


async def test_prepared_nothing_of_it_has_run(bench: Bench) -> None:
    monitor = bench.make()
    try:
        await monitor.prepare(bench.spec_for("echo words"))
        assert (bench.printed(), monitor.console_tail) == (b"", "")
        assert [process.role for process in monitor.processes] == ["vmm"]
        for early in (monitor.pause, monitor.resume, monitor.prove):
            with pytest.raises(HypervisorError):
                await early()
    finally:
        await monitor.stop()


async def test_proven_when_it_runs(bench: Bench) -> None:
    if bench.in_process is not None:
        pytest.skip(bench.in_process)
    async with Running(bench) as monitor:
        await monitor.prove()
        threads = await bench.host.confinement(monitor.processes[0].child)
        assert [thread.tid for thread in threads if not thread.confined] == []


async def test_what_it_prints_is_its_output(bench: Bench) -> None:
    monitor = bench.make()
    await monitor.prepare(bench.spec_for("echo some words"))
    await monitor.run()
    end = await monitor.wait()
    assert (end.status, bench.printed()) == (ExitStatus(code=0), b"echo some words")
    await monitor.stop()


@pytest.mark.parametrize("status", [0, 7])
async def test_its_exit_status_is_told(bench: Bench, status: int) -> None:
    monitor = bench.make()
    await monitor.prepare(bench.spec_for(f"exit {status}"))
    await monitor.run()
    end = await monitor.wait()
    assert (end.status, end.requested) == (ExitStatus(code=status), False)
    await monitor.stop()


async def test_a_network_device(bench: Bench, not_supported: Mark) -> None:
    monitor = bench.make()
    wire, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    spec = replace(bench.spec, file=bench.open(bench.with_net()), net=NetTap(theirs.fileno(), bytes(6)))
    with wire, theirs:
        if bench.takes_taps:
            await monitor.prepare(spec)
        else:
            not_supported("takes_taps")
            with pytest.raises(NotSupportedError):
                await monitor.prepare(spec)
        await monitor.stop()


@pytest.mark.parametrize("wrong", ["target", "devices"])
async def test_what_is_not_for_it_is_refused_before_anything_starts(bench: Bench, wrong: str) -> None:
    monitor = bench.make()
    content = bench.foreign() if wrong == "target" else bench.with_net()
    with pytest.raises(UnikernelError):
        await monitor.prepare(replace(bench.spec, file=bench.open(content)))
    assert bench.host.children == {}
    await monitor.stop()


async def test_pause_and_resume(bench: Bench) -> None:
    async with Running(bench) as monitor:
        await monitor.pause()
        await monitor.resume()
        await monitor.prove()


async def test_stop_is_an_end_on_request_and_idempotent(bench: Bench) -> None:
    async with Running(bench) as monitor:
        await asyncio.gather(monitor.stop(), monitor.stop())
        assert (await monitor.wait()).requested
        await monitor.stop()
        with pytest.raises(HypervisorError):
            await monitor.pause()


@pytest.mark.parametrize("stage", ["new", "prepared"])
async def test_stopped_before_it_ran(bench: Bench, stage: str) -> None:
    monitor = bench.make()
    spec = bench.spec_for("echo words")
    if stage == "prepared":
        await monitor.prepare(spec)
    await monitor.stop()
    with pytest.raises(LaunchError):
        await monitor.run()
    with pytest.raises(LaunchError):
        await monitor.prepare(spec)
    assert bench.printed() == b""


async def test_killed(bench: Bench) -> None:
    async with Running(bench) as monitor:
        await monitor.processes[0].child.kill()
        end = await monitor.wait()
        status, words = bench.killed
        assert (end.status, end.requested) == (status, False)
        assert end.reason.startswith(words)


async def test_a_program_that_is_not_there(bench: Bench) -> None:
    if bench.in_process is not None:
        pytest.skip(bench.in_process)
    monitor = bench.make(path=Path("/nonexistent/tender"))
    with pytest.raises(HypervisorError, match="/nonexistent/tender"):
        await monitor.prepare(bench.spec_for("echo words"))
    assert bench.host.children == {}
    await monitor.stop()
