"""Later containers where no files are shared: their disks are plugged in, and taken out with them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.abc
import pytest

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_configuration.models.firecracker import Firecracker
from kata_hypervisor.contract import Capabilities, Disk, Hypervisor
from kata_hypervisor.errors import HypervisorError
from kata_runtime.errors import UnsupportedError
from kata_runtime.pod.creation import CreateRequest, Creation
from kata_runtime.pod.linux_guest import LinuxGuest
from kata_runtime.resource.block_rootfs import BlockRootfs, overlay_storages
from kata_runtime.stdio.files import StdioPaths
from pod_bed import fixed_room, no_cpus
from tables import make_table


class Machine(Hypervisor):
    """A machine that only takes disks."""

    def __init__(self) -> None:
        self.capabilities = Capabilities(block_hotplug=True)
        self.disks: list[str] = []
        self.stuck = False

    async def add_disk(self, disk: Disk) -> None:
        if self.stuck:
            raise HypervisorError(f"cannot plug the disk {disk.id}: the guest did not respond")
        self.disks.append(disk.id)

    async def remove_disk(self, name: str) -> None:
        self.disks.remove(name)
        if self.stuck:
            raise HypervisorError(f"cannot take out the disk {name}: the guest did not respond")


Machine.__abstractmethods__ = frozenset()


class Agent:
    """Creates containers, or does not."""

    def __init__(self) -> None:
        self.asked: list[agent_pb2.CreateContainerRequest] = []
        self.failure: RpcError | None = None

    async def create_container(self, request: agent_pb2.CreateContainerRequest) -> None:
        self.asked.append(request)
        if self.failure is not None:
            raise self.failure


class Pod:
    """A running sandbox that shares no files."""

    def __init__(self, directory: Path, group: anyio.abc.TaskGroup) -> None:
        async def read_spec(bundle: str) -> bytes:
            return Path(bundle, "config.json").read_bytes()

        self.directory = directory
        self.group = group
        incomplete: Any = Machine
        self.machine: Machine = incomplete()
        self.agent = Agent()
        self.identity = SimpleNamespace(id="sandbox", shared_directory=str(directory / "shared"))
        self.broker: Any = SimpleNamespace(
            read_spec=read_spec, open_fifo=None, open_log=None, settle_logs=None
        )
        self.running = True
        self.start()

    def start(self) -> None:
        """Take the machine's capabilities as they are now."""
        configuration: Any = SimpleNamespace(
            hypervisor=make_table(Firecracker, kernel="/k"),  # which shares no files
            runtime=SimpleNamespace(disable_guest_seccomp=False),
            agent=SimpleNamespace(health_check_request_timeout_ms=1000),
        )
        agent: Any = self.agent
        self.guest = LinuxGuest(
            configuration, self.machine, agent, streams=True, room=fixed_room(), cpus=no_cpus()
        )
        sandbox: Any = self
        self.creation = Creation(sandbox, self.broker, self.group)

    @contextlib.asynccontextmanager
    async def asked_to(self, action: str) -> AsyncIterator[LinuxGuest]:
        """See Sandbox."""
        yield self.guest

    def request(self, name: str) -> CreateRequest:
        bundle = self.directory / name
        bundle.mkdir()
        spec = {"process": {"args": ["sh"], "cwd": "/"}, "root": {"path": "rootfs"}}
        kinds = ("pid", "ipc", "uts", "network")
        spec["linux"] = {"namespaces": [{"type": kind} for kind in kinds]}
        (bundle / "config.json").write_text(json.dumps(spec))
        return CreateRequest(name, str(bundle), (), StdioPaths(), None)


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    """A pod; the images of its containers are made at once."""

    async def image(rootfs: BlockRootfs, container: Any, mounts: Any) -> tuple[Path, int]:
        return Path("/image"), 0o755

    monkeypatch.setattr(BlockRootfs, "_image", image)
    async with anyio.create_task_group() as group:
        yield Pod(tmp_path, group)
        group.cancel_scope.cancel()


async def test_each_has_a_disk_of_its_own(pod: Pod) -> None:
    first, second = [await pod.creation.create(pod.request(name)) for name in ("a", "b")]
    assert pod.machine.disks == ["rootfs_1", "rootfs_2"]
    device = "/dev/disk/by-id/virtio-rootfs_2"
    assert list(pod.agent.asked[1].storages) == overlay_storages("b", device, 0o755)
    await pod.creation.take_away(first)
    await pod.creation.take_away(first)
    assert pod.machine.disks == ["rootfs_2"]
    pod.running = False  # it goes with the machine
    await pod.creation.take_away(second)
    assert pod.machine.disks == ["rootfs_2"]


async def test_a_container_that_fails_leaves_no_disk(pod: Pod) -> None:
    pod.agent.failure = RpcError(Code.INTERNAL, "crun: no")
    with pytest.raises(RpcError, match="crun: no"):
        await pod.creation.create(pod.request("a"))
    assert pod.machine.disks == []


async def test_a_disk_that_does_not_go_in_is_told(pod: Pod) -> None:
    pod.machine.stuck = True
    with pytest.raises(HypervisorError, match="plug the disk rootfs_1: the guest did not respond"):
        await pod.creation.create(pod.request("a"))
    assert pod.agent.asked == []


async def test_a_disk_that_does_not_come_out_is_logged(pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
    container = await pod.creation.create(pod.request("a"))
    pod.machine.stuck = True
    with caplog.at_level(logging.WARNING):
        await pod.creation.take_away(container)
    assert "container a: cannot take out the disk rootfs_1: the guest did not respond" in caplog.text


async def test_a_hypervisor_without_hotplug_refuses(pod: Pod) -> None:
    pod.machine.capabilities = Capabilities()
    pod.start()
    with pytest.raises(UnsupportedError, match="takes no disk while it runs, so a sandbox has one container"):
        await pod.creation.create(pod.request("a"))
    assert pod.agent.asked == []
