"""Templates of the in-process machine on a real KVM, with virtiofsd and the guest image: `make test-rig`."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_agent.client import AgentClient
from kata_agent.protos import agent_pb2, health_pb2
from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_hypervisor.contract import Disk, SharedDirectory, VmSpec
from kata_hypervisor.dragonball.driver import Dragonball
from kata_hypervisor.errors import SnapshotError
from local_host import LocalHost
from patience import PATIENCE

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(300)]

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
BOOT = max(120.0, PATIENCE)
HEALTH = health_pb2.CheckRequest()
DISK = Disk("rootfs", Path("unused"), read_only=True)


class Rig:
    """A host, and machines on it, which all are of one size."""

    def __init__(self, directory: Path) -> None:
        self.host = LocalHost()
        self.directory = directory
        self.template = directory / "template"
        self.template.mkdir(mode=0o700)
        self.spec = VmSpec(
            sandbox_id="rig",
            directory=directory,
            vcpus=1,
            memory_mib=256,
            kernel=IMAGE / "vmlinuz",
            initrd=IMAGE / "kata-initrd.img",
            image=IMAGE / "kata-image.erofs",
        )

    def machine(self, **settings: Any) -> Dragonball:
        daemon = next(path for path in VIRTIOFSD_PLACES if path.exists())
        values = {"kernel": self.spec.kernel, "virtio_fs_daemon": daemon, **settings}
        return Dragonball(DragonballTable(**values), self.host)

    @asynccontextmanager
    async def running(self, spec: VmSpec, **settings: Any) -> AsyncIterator[tuple[Dragonball, AgentClient]]:
        """A machine and its agent."""
        machine = self.machine(**settings)
        try:
            await machine.prepare(spec)
            await machine.run()
            agent = await AgentClient.connect(machine.transport, interval=0.02, deadline=BOOT, timeout=BOOT)
            await agent.check(HEALTH)
            yield machine, agent
            await agent.aclose()
        except TimeoutError:
            pytest.fail(f"no agent; console:\n{machine.console_tail}")
        finally:
            await machine.stop()

    async def make(self, spec: VmSpec) -> VmSpec:
        """Make a template; return the same machine, started from it."""
        async with self.running(replace(spec, saved_to=self.template)) as (machine, agent):
            await agent.aclose()
            await machine.pause()
            await machine.snapshot(self.template)
        return replace(spec, template=self.template)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Leaves no process behind."""
    rig = Rig(tmp_path)
    yield rig
    assert all(child.exited for child in rig.host.children.values())
    await rig.host.aclose()


def shared_and_private(name: str) -> tuple[int, int]:
    """KiB of this process's memory from files of this name: that others have too, and its own."""
    shared = private = 0
    counts = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if "-" in key.split(" ")[0]:
            counts = name in line
        elif counts and key.startswith("Shared_"):
            shared += int(rest.split()[0])
        elif counts and key.startswith("Private_Dirty"):
            private += int(rest.split()[0])
    return shared, private


@pytest.mark.parametrize("vcpus", [1, 3])
async def test_machines_with_shared_files_start_from_a_template(rig: Rig, vcpus: int) -> None:
    shared = rig.directory / "shared"
    shared.mkdir()
    (shared / "hello").write_text("x")
    spec = await rig.make(replace(rig.spec, vcpus=vcpus, shared=SharedDirectory(shared)))
    for _ in range(2):
        async with rig.running(spec, reclaim_guest_freed_memory=False) as (machine, agent):
            assert machine.warnings == ()
            await agent.reseed_random_dev(agent_pb2.ReseedRandomDevRequest(data=os.urandom(64)))
            now = time.time()
            await agent.set_guest_date_time(
                agent_pb2.SetGuestDateTimeRequest(Sec=int(now), Usec=int(now % 1 * 1e6))
            )
            details = await agent.get_guest_details(agent_pb2.GuestDetailsRequest())
            assert details.agent_details.version
            storage = agent_pb2.Storage(
                driver="virtio-fs",
                source="kataShared",
                fstype="virtiofs",
                mount_point="/run/kata-containers/shared",
            )
            await agent.create_sandbox(
                agent_pb2.CreateSandboxRequest(hostname="copy", sandbox_id="copy", storages=[storage])
            )
            await machine.pause()
            await machine.resume()
            await agent.check(HEALTH)


async def test_machines_with_disks_share_their_templates_memory(rig: Rig) -> None:
    spec = await rig.make(replace(rig.spec, disks=(DISK,)))
    disk = rig.directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    spec = replace(spec, disks=(replace(DISK, path=disk),))
    async with rig.running(spec), rig.running(spec) as _:
        shared, private = shared_and_private(str(rig.template))
        assert shared > private


async def test_a_template_is_for_its_machines_only(rig: Rig) -> None:
    spec = await rig.make(rig.spec)
    kernel = rig.directory / "vmlinuz"
    kernel.write_bytes(spec.kernel.read_bytes() + b"x")
    machine = rig.machine()
    with pytest.raises(SnapshotError, match=r"the guest's kernel was .* is .*kata-ctl factory init"):
        await machine.prepare(replace(spec, kernel=kernel))
    async with rig.running(replace(spec, vcpus=2)) as (machine, _):
        assert "number of vCPUs is '2', the template's '1'" in machine.warnings[0]
