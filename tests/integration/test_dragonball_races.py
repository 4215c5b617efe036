"""The driver's order of things with a guest of a few instructions, on whatever KVM this host has."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_hypervisor import vhost_vsock
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.dragonball import layout
from kata_hypervisor.dragonball.driver import Dragonball
from kata_hypervisor.dragonball.virtio import vsock
from kata_hypervisor.dragonball.virtio.device import DeviceContext
from kata_hypervisor.errors import HostUnfitError, HypervisorError, LaunchError
from kata_hypervisor.host import ExitStatus
from local_host import LocalHost
from patience import PATIENCE
from tables import make_table
from tiny_guest import SPIN, kernel, out_byte, say

pytestmark = pytest.mark.integration

POWER_OFF = out_byte(layout.SLEEP_CONTROL, 5 << 2 | 1 << 5)


@pytest.fixture
def anyio_backend() -> str:
    """The driver needs asyncio."""
    return "asyncio"


def open_files() -> list[str]:
    """What this process has open, by name."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if os.path.islink(link))


class Bench:
    """A host without vhost-vsock and virtiofsd, which a guest of a few instructions does not miss."""

    def __init__(self, directory: Path) -> None:
        self.host = LocalHost()
        self.directory = directory
        self.driver = Dragonball(make_table(DragonballTable, kernel=directory / "kernel"), self.host)

    def spec(self, code: bytes, vcpus: int = 1) -> VmSpec:
        path = self.directory / "kernel"
        path.write_bytes(kernel(code))
        return VmSpec("tiny", self.directory, vcpus, 16, path)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Leaves no thread and no descriptor."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/kvm")

    def connect(self: vsock.Socket, context: DeviceContext) -> None:
        """A memfd is no vhost device."""

    monkeypatch.setattr(vsock.Socket, "connect", connect)
    monkeypatch.setattr(vhost_vsock, "open_device", lambda: (os.memfd_create("vsock"), 3))
    asyncio.get_running_loop()
    files, threads = open_files(), threading.active_count()
    bench = Bench(tmp_path)
    yield bench
    await bench.driver.stop()
    await bench.driver.stop()
    assert threading.active_count() == threads
    assert open_files() == files


async def test_a_guest_runs_to_its_own_end(bench: Bench) -> None:
    await bench.driver.prepare(bench.spec(say(b"hello\n") + POWER_OFF + SPIN))
    assert bench.driver.console_tail == ""
    await bench.driver.run()
    async with asyncio.timeout(PATIENCE):
        end = await bench.driver.wait()
    assert (end.reason, end.requested) == ("the guest ended: it powered off", False)
    assert end.diagnostics == {"console": "hello"}
    vmm = bench.driver.processes[0].child
    assert (vmm.pid, vmm.exited) == (os.getpid(), ExitStatus(code=0))
    with pytest.raises(HypervisorError, match="cannot pause the virtual machine: it powered off"):
        await bench.driver.pause()


async def test_what_is_prepared_and_never_run_is_stopped(bench: Bench) -> None:
    await bench.driver.prepare(bench.spec(POWER_OFF, vcpus=2))
    await bench.driver.stop()
    assert (await bench.driver.wait()).requested
    with pytest.raises(LaunchError, match="cannot run the virtual machine"):
        await bench.driver.run()


async def test_a_stop_before_everything_else(bench: Bench) -> None:
    await bench.driver.stop()
    with pytest.raises(LaunchError, match="was used before"):
        await bench.driver.prepare(bench.spec(POWER_OFF))
    with pytest.raises(HypervisorError, match="it was not started"):
        await bench.driver.wait()


@pytest.mark.parametrize("turns", range(6))
async def test_a_stop_while_the_machine_is_made(bench: Bench, turns: int) -> None:
    making = asyncio.ensure_future(bench.driver.prepare(bench.spec(SPIN)))
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.gather(bench.driver.stop(), bench.driver.stop())
    with pytest.raises(LaunchError, match=r"was stopped while it started|was used before"):
        await making


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_start_leaves_nothing(bench: Bench, turns: int) -> None:
    making = asyncio.ensure_future(bench.driver.prepare(bench.spec(SPIN)))
    for _ in range(turns):
        await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making


async def test_a_spinning_guest_is_paused_resumed_and_killed(bench: Bench) -> None:
    await bench.driver.prepare(bench.spec(SPIN))
    await bench.driver.run()
    for _ in range(3):
        await bench.driver.pause()
        await bench.driver.resume()
    await bench.driver.verify_confinement()
    await bench.driver.processes[0].child.kill()
    async with asyncio.timeout(PATIENCE):
        end = await bench.driver.wait()
    assert end.reason == "the guest ended: it was killed"


async def test_a_machine_runs_once(bench: Bench) -> None:
    await bench.driver.prepare(bench.spec(SPIN))
    await bench.driver.run()
    with pytest.raises(LaunchError, match="it is not prepared, or runs already"):
        await bench.driver.run()
    with pytest.raises(LaunchError, match="was used before"):
        await bench.driver.prepare(bench.spec(SPIN))


async def test_a_host_without_vhost_vsock_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_vsock, "open_device", lambda: None)
    with pytest.raises(HostUnfitError, match="this host has no /dev/vhost-vsock; load vhost_vsock"):
        await bench.driver.prepare(bench.spec(POWER_OFF))
