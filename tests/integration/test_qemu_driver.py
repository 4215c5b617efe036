"""The driver with a real QEMU, virtiofsd and guest image: what the kernel says, and what is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.contract import Hypervisor, SharedDirectory, VmSpec
from kata_hypervisor.errors import HostUnfitError, LaunchError
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.qemu.driver import Qemu
from kata_hypervisor.registry import create
from kata_hypervisor.seccomp.confinement import inherited_filters
from local_host import LocalHost
from machines import start

pytestmark = pytest.mark.integration

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
NEEDED = [
    Path("/usr/bin/qemu-system-x86_64"),
    Path("/usr/lib/qemu/virtiofsd"),
    *(IMAGE / name for name in ("vmlinuz", "kata-initrd.img", "kata-image.erofs")),
]


def processes_with(directory: Path) -> set[str]:
    """The processes with the directory in their arguments."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.add(entry.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


class Rig:
    """A host, and machines on it."""

    def __init__(self, directory: Path) -> None:
        self.host = LocalHost()
        self.shared = directory / "shared"
        self.shared.mkdir()
        self.spec = VmSpec(
            sandbox_id="rig",
            directory=directory,
            vcpus=1,
            memory_mib=256,
            kernel=IMAGE / "vmlinuz",
            initrd=IMAGE / "kata-initrd.img",
            image=IMAGE / "kata-image.erofs",
            shared=SharedDirectory(self.shared),
        )

    def table(self, **settings: Any) -> QemuHypervisor:
        return QemuHypervisor(**{"kernel": IMAGE / "vmlinuz", "accelerator": "tcg", **settings})

    def machine(self, **settings: Any) -> Hypervisor:
        return create("qemu", self.table(**settings), self.host)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A rig; afterwards no process, descriptor or file of it is left."""
    missing = [str(path) for path in NEEDED if not path.exists()]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs {', '.join(missing)}" if missing else "needs root")
    before = os.listdir("/proc/self/fd")
    rig = Rig(tmp_path)
    yield rig
    assert all(child.exited for child in rig.host.children.values())
    while processes_with(tmp_path):  # noqa: ASYNC110 - virtiofsd's own child is not ours to wait for
        await asyncio.sleep(0.01)
    await rig.host.aclose()
    assert list(tmp_path.iterdir()) == [rig.shared]
    assert os.listdir("/proc/self/fd") == before


async def test_every_thread_is_under_the_configured_filter(rig: Rig) -> None:
    machine = rig.machine()
    await start(machine, rig.spec)
    try:
        assert os.listdir(rig.spec.directory) == ["shared"]
        vmm = machine.processes[0].child
        threads = await rig.host.confinement(vmm)
        assert len(threads) > 2
        assert {(thread.mode, thread.filters) for thread in threads} == {(2, inherited_filters() + 2)}
        await machine.pause()
        await machine.resume()
        await machine.verify_confinement()
    finally:
        await machine.stop()
    end = await machine.wait()
    assert (end.requested, end.status) == (True, ExitStatus(code=0))


async def test_off_is_off_and_says_so(rig: Rig) -> None:
    machine = rig.machine(seccompsandbox="")
    await start(machine, rig.spec)
    try:
        threads = await rig.host.confinement(machine.processes[0].child)
        assert {thread.filters for thread in threads} == {0}
        assert "qemu runs unconfined" in machine.warnings[0]
    finally:
        await machine.stop()


async def test_a_guest_that_panics_is_quoted(rig: Rig) -> None:
    machine = rig.machine()
    await start(machine, replace(rig.spec, initrd=None, image=None, kernel_parameters=("root=/dev/none",)))
    try:
        end = await machine.wait()
    finally:
        await machine.stop()
    assert end.reason.startswith("the guest's kernel panicked: not syncing: VFS: Unable to mount root fs")
    assert "Kernel panic" in end.diagnostics["console"]
    assert not end.requested


@pytest.mark.parametrize("name", ["qemu", "virtiofsd"])
async def test_a_process_that_is_killed_ends_the_machine(rig: Rig, name: str) -> None:
    machine = rig.machine()
    await start(machine, rig.spec)
    try:
        await rig.host.children[name].kill(signal.SIGKILL)
        end = await machine.wait()
    finally:
        await machine.stop()
    assert (end.process, end.status) == (name, ExitStatus(signal=signal.SIGKILL))
    assert end.reason.startswith(f"{name} was killed by SIGKILL")
    assert all(child.exited for child in rig.host.children.values())


async def test_a_kernel_that_does_not_exist(rig: Rig) -> None:
    with pytest.raises(HostUnfitError, match="guest's kernel: /none: No such file"):
        await start(rig.machine(), replace(rig.spec, kernel=Path("/none")))
    assert rig.host.children == {}


async def test_a_kernel_that_is_none(rig: Rig) -> None:
    with pytest.raises(LaunchError, match="qemu exited with status 1 before the guest was ready: qemu"):
        await start(rig.machine(), replace(rig.spec, kernel=Path("/etc/passwd")))


async def test_a_qemu_that_ends_at_once(rig: Rig) -> None:
    with pytest.raises(LaunchError, match="qemu exited with status 1 before the guest was ready"):
        await start(rig.machine(path="/bin/false"), rig.spec)


async def test_a_virtiofsd_that_ends_at_once(rig: Rig) -> None:
    with pytest.raises(LaunchError, match="virtiofsd exited with status 1 before the guest was ready"):
        await start(rig.machine(virtio_fs_daemon="/bin/false"), rig.spec)


async def test_a_qemu_that_says_nothing(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> None:
    script = tmp_path_factory.mktemp("bin") / "qemu"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    machine = Qemu(rig.table(path=script, seccompsandbox="off"), rig.host, start_budget=0.3)
    with pytest.raises(LaunchError, match=r"waiting for qemu's monitor: no answer within 0\.3 s"):
        await start(machine, rig.spec)


async def test_a_property_that_this_qemu_does_not_have(rig: Rig) -> None:
    with pytest.raises(LaunchError, match=r"status 1 before .*Property 'pc-q35.*\.frobnicate' not found"):
        await start(rig.machine(machine_accelerators="frobnicate=on"), rig.spec)
