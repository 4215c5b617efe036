"""The in-process machine on a real KVM, with virtiofsd and the guest image: `make test-rig`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_agent.client import AgentClient
from kata_agent.protos import agent_pb2, health_pb2
from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_hypervisor.contract import SharedDirectory, VmSpec
from kata_hypervisor.dragonball.driver import Dragonball
from kata_hypervisor.errors import HostUnfitError, HypervisorError, LaunchError
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.seccomp.confinement import read_threads
from local_host import LocalHost
from patience import PATIENCE

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(300)]

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
BOOT = max(120.0, PATIENCE)
HEALTH = health_pb2.CheckRequest()

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW_EVERYTHING = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)


class SockFprog(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


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

    def machine(self, **settings: Any) -> Dragonball:
        daemon = next(path for path in VIRTIOFSD_PLACES if path.exists())
        values = {"kernel": self.spec.kernel, "virtio_fs_daemon": daemon, **settings}
        return Dragonball(DragonballTable(**values), self.host)


def open_files() -> list[str]:
    """What this process has open, by name."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if os.path.islink(link))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Leaves no thread, descriptor, process or file behind."""
    files = open_files()
    threads = {thread.name for thread in threading.enumerate()}
    rig = Rig(tmp_path)
    yield rig
    assert all(child.exited for child in rig.host.children.values())
    await rig.host.aclose()
    assert {thread.name for thread in threading.enumerate()} == threads
    assert open_files() == files
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


async def connect(machine: Dragonball) -> AgentClient:
    """Connect to the agent of a guest that boots; quotes the console of one that does not."""
    try:
        return await AgentClient.connect(machine.transport, interval=0.2, deadline=BOOT, timeout=BOOT)
    except TimeoutError:
        pytest.fail(f"no agent; console:\n{machine.console_tail}")


def put_filter_on_this_thread() -> None:
    """The least that the kernel counts as a filter."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = SockFprog(1, ALLOW_EVERYTHING)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0


@pytest.mark.parametrize("vcpus", [1, 3])
async def test_a_guest_boots_to_its_agent_shares_files_and_pauses(rig: Rig, vcpus: int) -> None:
    (rig.shared / "from-the-host").mkdir()
    machine = rig.machine()
    await machine.prepare(replace(rig.spec, vcpus=vcpus))
    try:
        assert [process.role for process in machine.processes] == ["vmm", "virtiofsd"]
        names = [thread.name for thread in threading.enumerate()]
        assert {f"vcpu{number}" for number in range(vcpus)} <= set(names)
        await machine.run()
        agent = await connect(machine)
        try:
            await agent.create_sandbox(mount_shared_directory())
            await agent.copy_file(new_file("/run/kata-containers/shared/containers/from-the-guest"))
            assert (rig.shared / "from-the-guest").read_bytes() == b"hello"
            await machine.pause()
            paused = asyncio.ensure_future(agent.check(HEALTH))
            await asyncio.wait({paused}, timeout=1)
            assert not paused.done()
            await machine.resume()
            await paused
        finally:
            await agent.aclose()
        await machine.verify_confinement()
    finally:
        await machine.stop()
    end = await machine.wait()
    assert (end.requested, end.process, end.status) == (True, "dragonball", ExitStatus(code=0))
    assert end.reason == "the guest ended: it was stopped"


async def test_every_vcpu_puts_on_its_filter_before_the_guest_runs(rig: Rig) -> None:
    machine = rig.machine()
    await machine.prepare(replace(rig.spec, vcpus=2))
    try:
        own = threading.get_native_id()
        before = {thread.tid: thread.filters for thread in read_threads(os.getpid())}
        sealed: list[str] = []

        def seal() -> None:
            sealed.append(threading.current_thread().name)
            put_filter_on_this_thread()

        machine.seal_vcpus(seal)
        with pytest.raises(
            HypervisorError, match="the kernel reports seccomp mode 0 for thread"
        ):  # as a whole it is not
            await machine.run()
        assert sorted(sealed) == ["vcpu0", "vcpu1"]
        assert before[own] == 0
        assert machine.console_tail == ""
    finally:
        await machine.stop()


async def test_a_filter_that_cannot_be_installed_ends_the_machine(rig: Rig) -> None:
    machine = rig.machine()
    await machine.prepare(rig.spec)

    def fail() -> None:
        raise HypervisorError("cannot install")

    machine.seal_vcpus(fail)
    with pytest.raises(HypervisorError, match="cannot install"):
        await machine.run()
    assert machine.console_tail == ""


async def test_a_guest_that_panics_is_quoted(rig: Rig) -> None:
    machine = rig.machine()
    spec = replace(rig.spec, initrd=None, image=None, kernel_parameters=("root=/dev/none",))
    await machine.prepare(spec)
    await machine.run()
    async with asyncio.timeout(BOOT):
        end = await machine.wait()
    await machine.stop()
    assert (end.reason, end.requested) == ("the guest ended: it reset", False)
    assert "Kernel panic - not syncing: VFS: Unable to mount root fs" in end.diagnostics["console"]


async def test_a_virtiofsd_that_is_killed_ends_the_machine(rig: Rig) -> None:
    machine = rig.machine()
    await machine.prepare(rig.spec)
    await machine.run()
    await rig.host.children["virtiofsd"].kill()
    async with asyncio.timeout(BOOT):
        end = await machine.wait()
    await machine.stop()
    assert end.process == "virtiofsd"
    assert end.reason.startswith("virtiofsd exited: killed by SIGKILL")


async def test_what_does_not_start_says_why(rig: Rig) -> None:
    for machine, spec, error, message in (
        (rig.machine(), replace(rig.spec, kernel=Path("/none")), LaunchError, "kernel /none: No such file"),
        (
            rig.machine(),
            replace(rig.spec, kernel=Path("/etc/passwd")),
            LaunchError,
            "neither an ELF file nor",
        ),
        (rig.machine(), replace(rig.spec, initrd=Path("/none")), LaunchError, "initrd /none: No such file"),
        (rig.machine(), replace(rig.spec, image=Path("/none")), LaunchError, "image /none: No such file"),
        (rig.machine(), replace(rig.spec, memory_mib=32), LaunchError, "raise default_memory"),
        (rig.machine(), replace(rig.spec, vcpus=33), LaunchError, "33 vCPUs: 1 to 32"),
        (
            rig.machine(virtio_fs_daemon="/bin/false"),
            rig.spec,
            LaunchError,
            "before the guest was ready: exit status 1",
        ),
        (rig.machine(virtio_fs_daemon="/none"), rig.spec, HostUnfitError, "virtiofsd /none"),
    ):
        with pytest.raises(error, match=message):
            await machine.prepare(spec)


def mount_shared_directory() -> agent_pb2.CreateSandboxRequest:
    """Let the agent mount what the host shares."""
    storage = agent_pb2.Storage(
        driver="virtio-fs",
        source="kataShared",
        fstype="virtiofs",
        options=["nodev"],
        mount_point="/run/kata-containers/shared/containers",
    )
    return agent_pb2.CreateSandboxRequest(hostname="rig", sandbox_id="rig", storages=[storage])


def new_file(path: str) -> agent_pb2.CopyFileRequest:
    """Let the agent write a file of five bytes."""
    return agent_pb2.CopyFileRequest(
        path=path, file_size=5, file_mode=0o100644, dir_mode=0o755, uid=0, gid=0, offset=0, data=b"hello"
    )
