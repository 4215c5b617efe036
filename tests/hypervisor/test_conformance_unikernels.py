"""What every monitor of unikernels promises, tried on every one of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

import taps
import unikernel_subjects as subjects
from kata_hypervisor.contract import BlockFile, UnikernelSpec, UnikernelVmm
from kata_hypervisor.errors import HypervisorError, LaunchError, NotSupportedError, UnikernelError
from kata_hypervisor.host import ExitStatus
from patience import PATIENCE
from unikernel_subjects import Bench

Mark = Callable[[str], None]
BUDGET = PATIENCE


@pytest.fixture(params=subjects.parameters())
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """A bench; afterwards no process and no descriptor of its unikernel is left."""
    before = len(os.listdir("/proc/self/fd"))
    bench = subjects.bench_of(request.param, tmp_path, monkeypatch)
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

    async def __aenter__(self) -> UnikernelVmm:
        await self.monitor.prepare(self._bench.spec_for("spin"))
        await self.monitor.run()
        async with asyncio.timeout(BUDGET):
            while not (output := self._bench.printed()):  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0.01)
        assert output == b"spinning\n"
        return self.monitor

    async def __aexit__(self, *_: object) -> None:
        await self.monitor.stop()


async def test_prepared_nothing_of_it_has_run(bench: Bench) -> None:
    monitor = bench.make()
    try:
        await monitor.prepare(bench.spec_for("echo words"))
        assert (bench.printed(), monitor.console_tail) == (b"", "")
        assert [process.role for process in monitor.processes] == ["vmm"]
        for early in (monitor.pause, monitor.resume, monitor.verify_confinement):
            with pytest.raises(HypervisorError):
                await early()
    finally:
        await monitor.stop()


async def test_proven_when_it_runs(bench: Bench) -> None:
    if bench.in_process is not None:
        pytest.skip(bench.in_process)
    async with Running(bench) as monitor:
        await monitor.verify_confinement()
        threads = await bench.host.confinement(monitor.processes[0].child)
        assert [thread.tid for thread in threads if not thread.confined] == []


async def test_what_it_prints_is_its_output(bench: Bench) -> None:
    monitor = bench.make()
    await monitor.prepare(bench.spec_for("echo some words"))
    await monitor.run()
    end = await monitor.wait()
    assert (end.status, bench.printed()) == (ExitStatus(code=0), b"echo some words" + bench.added)
    await monitor.stop()


@pytest.mark.parametrize("status", [0, 7])
async def test_its_exit_status_is_told(bench: Bench, status: int, not_supported: Mark) -> None:
    monitor, asked = bench.make(), status
    if status and not monitor.capabilities.exit_status:
        not_supported("exit_status")
        status = 0
    await monitor.prepare(bench.spec_for(f"exit {asked}"))
    await monitor.run()
    end = await monitor.wait()
    assert (end.status, end.requested) == (ExitStatus(code=status), False)
    await monitor.stop()


async def test_an_initrd(bench: Bench, not_supported: Mark) -> None:
    monitor = bench.make()
    spec = replace(bench.spec_for("echo words"), initrd=bench.open(b"content"))
    await prepare_or_refuse(monitor, spec, monitor.capabilities.initrd, "initrd", not_supported)


async def test_a_block_device(bench: Bench, not_supported: Mark) -> None:
    monitor = bench.make()
    file, disk = bench.open(bench.with_device(subjects.BLOCK)), BlockFile(bench.open(bytes(512)))
    spec = replace(bench.spec, file=file, block=disk)
    await prepare_or_refuse(monitor, spec, monitor.capabilities.block, "block", not_supported)


@pytest.mark.parametrize("way", ["tap_descriptors", "tap_names"])
async def test_a_network_device(bench: Bench, way: str, not_supported: Mark) -> None:
    monitor = bench.make()
    able = getattr(monitor.capabilities, way) and way not in bench.lacks
    with taps.network_device(way, real=bench.real_taps and able) as net:
        spec = replace(bench.spec, file=bench.open(bench.with_device(subjects.NET)), net=net)
        await prepare_or_refuse(monitor, spec, able, way, not_supported)


async def prepare_or_refuse(
    monitor: UnikernelVmm, spec: UnikernelSpec, able: bool, capability: str, mark: Mark
) -> None:
    """Prepare what the monitor says that it can run; of what it cannot, see that it refuses."""
    if able:
        await monitor.prepare(spec)
    else:
        mark(capability)
        with pytest.raises(NotSupportedError):
            await monitor.prepare(spec)
    await monitor.stop()


@pytest.mark.parametrize("wrong", ["target", "devices"])
async def test_what_is_not_for_it_is_refused_before_anything_starts(bench: Bench, wrong: str) -> None:
    monitor = bench.make()
    content = bench.foreign() if wrong == "target" else bench.with_undeclared()
    with pytest.raises(UnikernelError):
        await monitor.prepare(replace(bench.spec, file=bench.open(content)))
    assert bench.host.children == {}
    await monitor.stop()


async def test_pause_and_resume(bench: Bench) -> None:
    async with Running(bench) as monitor:
        await monitor.pause()
        await monitor.resume()
        await monitor.verify_confinement()


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
        status, reason = bench.killed
        assert (end.status, end.requested) == (status, False)
        assert end.reason.startswith(reason)


async def test_a_program_that_is_not_there(bench: Bench) -> None:
    if bench.in_process is not None:
        pytest.skip(bench.in_process)
    monitor = bench.make(path=Path("/nonexistent/tender"))
    with pytest.raises(HypervisorError, match="/nonexistent/tender"):
        await monitor.prepare(bench.spec_for("echo words"))
    assert bench.host.children == {}
    await monitor.stop()
