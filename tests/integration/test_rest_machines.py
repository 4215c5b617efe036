"""Machines of Cloud Hypervisor and Firecracker with a Linux guest and its agent: devices, states, endings.

On a KVM that runs unmodified guests (`make test-rig`), with the programs that the variables of
`conformance_subjects` name.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kata_agent.client import AgentClient
from kata_agent.protos import agent_pb2, health_pb2
from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.firecracker import Firecracker
from kata_hypervisor import registry
from kata_hypervisor.contract import Disk, Hypervisor, MachineSize, SharedDirectory, Tap, VmSpec
from kata_hypervisor.errors import HypervisorError, NotSupportedError, SnapshotError
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.seccomp.confinement import read_threads
from local_host import LocalHost
from patience import PATIENCE

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(600)]

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
PROGRAMS = {
    "clh": ("KATA_TEST_CLOUD_HYPERVISOR", "cloud-hypervisor"),
    "firecracker": ("KATA_TEST_FIRECRACKER", "firecracker"),
}
BOOT = max(240.0, PATIENCE)
HEALTH = health_pb2.CheckRequest()
MAC = "02:00:00:00:00:17"
GUEST_DIRECTORY = "/run/kata-containers/plugged"

# <linux/if_tun.h>
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


@dataclass
class Bed:
    """One VMM, and machines in it. name: as in [hypervisor.NAME]."""

    name: str
    program: Path
    host: LocalHost
    spec: VmSpec

    def machine(self, **settings: Any) -> Hypervisor:
        """Make a driver."""
        values = {"path": self.program, "kernel": self.spec.kernel, **settings}
        if self.name == "clh":
            daemon = next(path for path in VIRTIOFSD_PLACES if path.exists())
            return registry.create("clh", CloudHypervisor(virtio_fs_daemon=daemon, **values), self.host)
        return registry.create("firecracker", Firecracker(**values), self.host)

    @asynccontextmanager
    async def running(self, spec: VmSpec, **settings: Any) -> AsyncIterator[tuple[Hypervisor, AgentClient]]:
        """A machine that runs, and its agent."""
        machine = self.machine(**settings)
        try:
            await machine.prepare(spec)
            await machine.run()
            agent = await connect(machine)
            try:
                yield machine, agent
            finally:
                await agent.aclose()
        finally:
            await machine.stop()


async def connect(machine: Hypervisor) -> AgentClient:
    """Connect to the agent of a guest that boots; quotes the console of one that does not."""
    try:
        return await AgentClient.connect(machine.transport, interval=0.2, deadline=BOOT, timeout=BOOT)
    except TimeoutError:
        pytest.fail(f"no agent; console:\n{machine.console_tail}")


@pytest.fixture(params=list(PROGRAMS))
async def bed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bed]:
    """Leaves no process, descriptor or file of its machines behind."""
    variable, name = PROGRAMS[request.param]
    found = os.environ.get(variable) or shutil.which(name)
    if not found or not Path(found).exists():
        pytest.skip(f"{name} is missing: put it on PATH, or name it in {variable}")
    before = len(os.listdir("/proc/self/fd"))
    directory = tmp_path / "m"
    directory.mkdir()
    spec = VmSpec(
        sandbox_id="bed",
        directory=directory,
        vcpus=1,
        memory_mib=256,
        kernel=IMAGE / "vmlinuz",
        initrd=IMAGE / "kata-initrd.img",
        image=IMAGE / "kata-image.erofs",
    )
    bed = Bed(request.param, Path(found), LocalHost(), spec)
    yield bed
    assert [child.name for child in bed.host.children.values() if child.exited is None] == []
    await bed.host.aclose()
    assert list(directory.iterdir()) == []
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def erofs(tmp_path: Path) -> Path:
    """A disk with a file system that holds one file."""
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("mkfs.erofs is missing: install erofs-utils")
    content, path = tmp_path / "content", tmp_path / "disk.erofs"
    content.mkdir()
    (content / "file").write_text("here")
    subprocess.run(["mkfs.erofs", path, content], check=True, capture_output=True)
    return path


@pytest.fixture
def tap(bed: Bed) -> Iterator[Tap]:
    """A tap: for Cloud Hypervisor its open queue, for Firecracker its name."""
    queue = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(queue, TUNSETIFF, struct.pack("16sH14x", b"kata-rest0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    if bed.name == "clh":
        yield Tap("net0", "kata-rest0", MAC, fds=(queue,))
        os.close(queue)
        return
    fcntl.ioctl(queue, TUNSETPERSIST, 1)
    os.close(queue)
    yield Tap("net0", "kata-rest0", MAC)
    subprocess.run(["ip", "link", "del", "kata-rest0"], check=True)


def disk_request(source: str, number: int) -> agent_pb2.CreateSandboxRequest:
    """Have the agent mount a disk; a guest without the file system on it refuses."""
    storage = agent_pb2.Storage(
        driver="blk",
        source=source,
        fstype="erofs",
        options=["ro"],
        mount_point=f"{GUEST_DIRECTORY}/{number}",
    )
    return agent_pb2.CreateSandboxRequest(hostname="bed", sandbox_id="bed", storages=[storage])


def share_request() -> agent_pb2.CreateSandboxRequest:
    """Have the agent mount what the host shares."""
    storage = agent_pb2.Storage(
        driver="virtio-fs", source="kataShared", fstype="virtiofs", mount_point=GUEST_DIRECTORY
    )
    return agent_pb2.CreateSandboxRequest(hostname="bed", sandbox_id="bed", storages=[storage])


async def test_a_machine_with_a_disk_that_comes_later(bed: Bed, erofs: Path) -> None:
    async with bed.running(replace(bed.spec, spare_disks=1)) as (machine, agent):
        await machine.add_disk(Disk("later", erofs, read_only=True))
        await agent.create_sandbox(disk_request("/dev/vdb", 1))
        await machine.verify_confinement()


async def test_a_paused_machine_answers_when_it_is_resumed(bed: Bed) -> None:
    async with bed.running(bed.spec) as (machine, agent):
        await machine.pause()
        asking = asyncio.ensure_future(agent.check(HEALTH))
        await asyncio.wait({asking}, timeout=1)
        assert not asking.done()
        await machine.resume()
        await asking


async def test_a_machine_goes_on_in_another_with_everything_it_had(
    bed: Bed, erofs: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template"
    template.mkdir()
    spec = replace(bed.spec, spare_disks=1)
    async with bed.running(replace(spec, saved_to=template)) as (machine, agent):
        await machine.pause()
        await machine.snapshot(template)
    saved = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in template.iterdir()}
    for _ in range(2):
        async with bed.running(replace(spec, template=template)) as (machine, agent):
            assert not any("booted" in warning for warning in machine.warnings)
            assert "Linux version" not in machine.console_tail
            await machine.add_disk(Disk("later", erofs, read_only=True))
            await agent.create_sandbox(disk_request("/dev/vdb", 1))
            threads = read_threads(machine.processes[0].child.pid)
            assert [thread.name for thread in threads if "vcpu" in thread.name]
            await machine.verify_confinement()
    assert saved == {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in template.iterdir()}
    size = spec.memory_mib + 64
    async with bed.running(replace(spec, template=template, memory_mib=size)) as (machine, agent):
        assert any("booted" in warning for warning in machine.warnings)
    (template / ("config.json" if bed.name == "clh" else "state")).write_text("{}")
    broken = bed.machine()
    with pytest.raises(HypervisorError):
        await broken.prepare(replace(spec, template=template))
    await broken.stop()


async def test_a_network_device(bed: Bed, tap: Tap) -> None:
    async with bed.running(replace(bed.spec, taps=(tap,))) as (_, agent):
        found = await agent.list_interfaces(agent_pb2.ListInterfacesRequest())
        assert MAC in [interface.hwAddr for interface in found.Interfaces]


async def test_more_virtual_cpus(bed: Bed) -> None:
    if bed.name != "clh":
        machine = bed.machine()
        with pytest.raises(NotSupportedError):
            await machine.resize(MachineSize(2, bed.spec.memory_mib))
        await machine.stop()
        return
    most = MachineSize(2, bed.spec.memory_mib + 256)
    async with bed.running(replace(bed.spec, most=most)) as (machine, agent):
        assert await machine.resize(most) == most
        await agent.online_cpu_mem(agent_pb2.OnlineCPUMemRequest(wait=True, nb_cpus=1, cpu_only=True))
        await machine.verify_confinement()
        with pytest.raises(HypervisorError, match="cannot resize the virtual machine to 3 vCPUs"):
            await machine.resize(MachineSize(3, most.memory_mib))


async def test_shared_files_and_an_end_on_request(bed: Bed, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    spec = replace(bed.spec, shared=SharedDirectory(shared)) if bed.name == "clh" else bed.spec
    async with bed.running(spec) as (machine, agent):
        if bed.name == "clh":
            await agent.create_sandbox(share_request())
        await machine.stop()
        end = await machine.wait()
        # Asked to, Cloud Hypervisor ends by itself; Firecracker has no such request.
        expected = ExitStatus(code=0) if bed.name == "clh" else ExitStatus(signal=9)
        assert (end.requested, end.status) == (True, expected)


async def test_what_a_saved_machine_shares_is_each_ones_own(bed: Bed, tmp_path: Path) -> None:
    if bed.name != "clh":
        pytest.skip("firecracker shares no files")
    template, *shared = (tmp_path / name for name in ("template", "first", "second"))
    for path in (template, *shared):
        path.mkdir()
    first, second = (replace(bed.spec, shared=SharedDirectory(path)) for path in shared)
    async with bed.running(replace(first, saved_to=template)) as (machine, _):
        await machine.pause()
        await machine.snapshot(template)
    async with bed.running(replace(second, template=template)) as (machine, agent):
        assert not any("booted" in warning for warning in machine.warnings)
        await agent.create_sandbox(share_request())
        await agent.copy_file(
            agent_pb2.CopyFileRequest(
                path=f"{GUEST_DIRECTORY}/made", file_size=5, file_mode=0o100644, dir_mode=0o755, data=b"hello"
            )
        )
    assert [list(path.iterdir()) for path in shared] == [[], [shared[1] / "made"]]


async def test_a_state_of_another_kernel_is_refused_before_the_vmm_sees_it(bed: Bed, tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    machine = bed.machine()
    await machine.prepare(replace(bed.spec, saved_to=template))
    await machine.stop()
    kernel = tmp_path / "vmlinuz"
    shutil.copy(bed.spec.kernel, kernel)
    other = bed.machine(kernel=kernel)
    with pytest.raises(SnapshotError, match="it was saved with the guest's kernel"):
        await other.prepare(replace(bed.spec, template=template, kernel=kernel))
    await other.stop()
