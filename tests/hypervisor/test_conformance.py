"""What every driver promises, tried on every driver. At the end a table says what came of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conformance_subjects as subjects
from conformance_subjects import Bench
from kata_agent.constants import AGENT_PORT
from kata_agent.transport import GuestUnreachableError
from kata_hypervisor.contract import Disk, Hypervisor, MachineSize, Tap
from kata_hypervisor.errors import HypervisorError, LaunchError, NotSupportedError
from patience import PATIENCE

Mark = Callable[[str], None]
BUDGET = max(100.0, PATIENCE)


@pytest.fixture(params=subjects.parameters())
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """A bench; afterwards no process, descriptor or file of its machine is left."""
    bench = subjects.bench_of(request.param, tmp_path, monkeypatch)
    before = len(os.listdir("/proc/self/fd"))
    try:
        yield bench
        assert [child.name for child in bench.host.children.values() if child.exited is None] == []
        assert bench.left() == []
    finally:
        await bench.host.aclose()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


class Running:
    """A machine that runs, for the time of a `with`."""

    def __init__(self, bench: Bench, *, saved_to: Path | None = None, **settings: Any) -> None:
        self.machine = bench.make(**settings)
        self._spec = replace(bench.spec, saved_to=saved_to)

    async def __aenter__(self) -> Hypervisor:
        await self.machine.prepare(self._spec)
        await self.machine.run()
        return self.machine

    async def __aexit__(self, *_: object) -> None:
        await self.machine.stop()


async def try_or_refuse(able: bool, capability: str, mark: Mark, action: Coroutine[Any, Any, object]) -> None:
    """Do what the driver says that it can; of what it cannot, see that it refuses."""
    if able:
        await action
        return
    mark(capability)
    with pytest.raises(NotSupportedError):
        await action


async def test_prepared_nothing_of_the_guest_has_run(bench: Bench) -> None:
    machine = bench.make()
    try:
        await machine.prepare(bench.spec)
        assert machine.console_tail == ""
        assert [process.role for process in machine.processes] == ["vmm"]
        with pytest.raises(HypervisorError):
            await machine.pause()
    finally:
        await machine.stop()


async def test_proven_when_it_runs(bench: Bench) -> None:
    if bench.in_process is not None:
        pytest.skip(bench.in_process)
    async with Running(bench) as machine:
        await machine.verify_confinement()
        threads = await bench.host.confinement(machine.processes[0].child)
        confined = [thread for thread in threads if thread.confined]
        assert len(confined) >= 2
        assert [thread.tid for thread in threads if not thread.confined] in ([], [threads[0].tid])


async def test_unconfined_where_configured_and_says_so(bench: Bench) -> None:
    if bench.in_process is not None:
        pytest.skip(bench.in_process)
    async with Running(bench, **bench.unconfined) as machine:
        assert any("runs unconfined" in warning for warning in machine.warnings)
        threads = await bench.host.confinement(machine.processes[0].child)
        assert {thread.filters for thread in threads} == {0}


async def test_the_guests_console_is_kept(bench: Bench) -> None:
    if bench.runs_guests is not None:
        pytest.skip(bench.runs_guests)
    async with Running(bench) as machine, asyncio.timeout(BUDGET):
        while not machine.console_tail:  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0.05)


async def reach_agent(bench: Bench, machine: Hypervisor) -> None:
    """Wait until the guest's agent takes a connection."""
    async with asyncio.timeout(BUDGET):
        while True:
            try:
                stream, _ = await machine.transport.connect(AGENT_PORT)
            except GuestUnreachableError:
                await asyncio.sleep(0.05)
            else:
                stream.close()
                return


async def test_the_agent_is_reached(bench: Bench) -> None:
    if (why := bench.runs_guests or bench.agentless) is not None:
        pytest.skip(why)
    async with Running(bench) as machine:
        assert machine.capabilities.agent
        await reach_agent(bench, machine)


async def test_a_shared_directory(bench: Bench, not_supported: Mark) -> None:
    machine = bench.make()

    async def use() -> None:
        await machine.prepare(subjects.share(bench.spec))
        await machine.run()
        assert [process.role for process in machine.processes] == ["vmm", "virtiofsd"]

    try:
        await try_or_refuse(machine.capabilities.file_sharing, "file_sharing", not_supported, use())
    finally:
        await machine.stop()


async def test_further_disks(bench: Bench, not_supported: Mark, tmp_path: Path) -> None:
    machine = bench.make()
    disk = Disk("data", _blank(tmp_path), read_only=True)

    async def use() -> None:
        await machine.prepare(replace(bench.spec, disks=(disk,)))
        await machine.run()

    try:
        await try_or_refuse(machine.capabilities.disks, "disks", not_supported, use())
    finally:
        await machine.stop()
        disk.path.unlink()


async def test_a_disk_that_is_plugged_in(
    bench: Bench, not_supported: Mark, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = Disk("data", _blank(tmp_path_factory.mktemp("disk")), read_only=True)
    bench.spec = replace(bench.spec, spare_disks=1)
    async with Running(bench) as machine:
        if machine.capabilities.device_hotplug and not machine.capabilities.block_hotplug:
            pytest.skip("a block device of the host comes from the broker: test_block_devices.py")
        able = machine.capabilities.block_hotplug
        if able and bench.plugs is not None:
            pytest.skip(bench.plugs)
        if able and bench.plugs_when_booted:
            await reach_agent(bench, machine)
        await try_or_refuse(able, "block_hotplug", not_supported, machine.add_disk(disk))
        await try_or_refuse(able, "block_hotplug", not_supported, machine.remove_disk("data"))


async def test_a_network_device_that_is_plugged_in(bench: Bench, not_supported: Mark) -> None:
    machine = bench.make()
    if machine.capabilities.tap_hotplug:
        await machine.stop()
        pytest.skip("the test of the driver makes the tap: test_dragonball_plugging.py")
    tap = Tap("net0", "no-such-tap", "02:00:00:00:00:01")
    not_supported("tap_hotplug")
    for action in (machine.add_tap(tap), machine.remove_tap("net0")):
        with pytest.raises(NotSupportedError):
            await action
    await machine.stop()


async def test_network_devices_that_cannot_be_are_refused(bench: Bench, not_supported: Mark) -> None:
    machine = bench.make()
    tap = Tap("net0", "no-such-tap", "02:00:00:00:00:01", fds=(0,))
    if machine.capabilities.tap_descriptors:
        await machine.stop()
        return
    not_supported("taps" if not machine.capabilities.taps else "tap_descriptors")
    with pytest.raises(NotSupportedError):
        await machine.prepare(replace(bench.spec, taps=(tap,)))
    await machine.stop()


async def test_pause_and_resume(bench: Bench, not_supported: Mark) -> None:
    async with Running(bench) as machine:

        async def use() -> None:
            await machine.pause()
            await machine.resume()
            await machine.verify_confinement()

        await try_or_refuse(machine.capabilities.pause, "pause", not_supported, use())


async def test_snapshot(bench: Bench, not_supported: Mark, tmp_path_factory: pytest.TempPathFactory) -> None:
    if bench.snapshots is not None:
        pytest.skip(bench.snapshots)
    directory = tmp_path_factory.mktemp("snapshot")
    async with Running(bench, saved_to=directory) as machine:

        async def use() -> None:
            await machine.pause()
            await machine.snapshot(directory)

        await try_or_refuse(machine.capabilities.snapshot, "snapshot", not_supported, use())


async def test_a_machine_that_goes_on_from_a_snapshot(
    bench: Bench, not_supported: Mark, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if bench.snapshots is not None:
        pytest.skip(bench.snapshots)
    directory = tmp_path_factory.mktemp("snapshot")
    another = bench.make()
    if not another.capabilities.restore:
        not_supported("restore")
        with pytest.raises(NotSupportedError):
            await another.prepare(replace(bench.spec, template=directory))
        return
    async with Running(bench, saved_to=directory) as machine:
        await machine.pause()
        await machine.snapshot(directory)
    try:
        await another.prepare(replace(bench.spec, template=directory))
        await another.run()
        assert not any("is booted" in warning for warning in another.warnings)
        await another.pause()
        await another.resume()
    finally:
        await another.stop()


async def test_resize(bench: Bench, not_supported: Mark) -> None:
    async with Running(bench) as machine:
        able = machine.capabilities.resize
        size = MachineSize(bench.spec.vcpus, bench.spec.memory_mib)
        await try_or_refuse(able, "resize", not_supported, machine.resize(size))


async def test_stop_is_an_end_on_request_and_idempotent(bench: Bench) -> None:
    async with Running(bench) as machine:
        await asyncio.gather(machine.stop(), machine.stop())
        end = await machine.wait()
        assert end.requested
        await machine.stop()


@pytest.mark.parametrize("stage", ["new", "prepared"])
async def test_stopped_before_it_ran(bench: Bench, stage: str) -> None:
    machine = bench.make()
    if stage == "prepared":
        await machine.prepare(bench.spec)
    await machine.stop()
    with pytest.raises(LaunchError):
        await machine.run()


@pytest.mark.parametrize("stage", ["starting", "prepared", "running"])
async def test_killed(bench: Bench, stage: str) -> None:
    machine = bench.make()
    try:
        if stage == "starting":
            if bench.in_process is not None:
                pytest.skip(bench.in_process)
            preparing = asyncio.ensure_future(machine.prepare(bench.spec))
            while bench.vmm not in bench.host.children:  # noqa: ASYNC110 - what is awaited has no event
                await asyncio.sleep(0)
            await bench.host.children[bench.vmm].kill()
            with pytest.raises(LaunchError, match="killed by SIGKILL"):
                await preparing
            return
        await machine.prepare(bench.spec)
        if stage == "running":
            await machine.run()
        await machine.processes[0].child.kill()
        end = await machine.wait()
        status, reason = bench.end
        assert (end.process, end.status, end.requested) == (bench.vmm, status, False)
        assert end.reason.startswith(reason)
    finally:
        await machine.stop()


async def test_a_program_that_is_not_there(bench: Bench) -> None:
    if bench.in_process is not None:
        pytest.skip(bench.in_process)
    machine = bench.make(path=Path("/nonexistent/vmm"))
    with pytest.raises(HypervisorError, match="/nonexistent/vmm"):
        await machine.prepare(bench.spec)
    assert bench.host.children == {}
    await machine.stop()


def _blank(directory: Path) -> Path:
    """An empty disk, which is removed with the test."""
    path = directory / "blank"
    path.write_bytes(bytes(1 << 20))
    return path
