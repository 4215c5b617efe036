"""Making a container: its files on the host, the machine if it is the first, its place in the guest.

The order matters: what cannot work is refused before a machine is started for it, and what the first
container needs of the host is known before the guest runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import anyio.abc
import anyio.lowlevel

from kata_agent import oci
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor import registry
from kata_hypervisor.concurrency import finish
from kata_hypervisor.errors import HypervisorError
from kata_runtime.block_nodes import block_nodes
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container import bundle as oci_bundle
from kata_runtime.container import devices, guest_spec, namespaces, propagation, resources
from kata_runtime.container.bundle import ContainerType
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import InvalidRequestError, RuntimeRoomError, StateError, UnsupportedError
from kata_runtime.pod import hooks, machine_spec
from kata_runtime.pod.linux_boot import LinuxBoot
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.spec import load_spec
from kata_runtime.pod.states import State
from kata_runtime.resource import block_devices, memory
from kata_runtime.resource.block_devices import BlockDevices
from kata_runtime.resource.block_rootfs import BlockRootfs, locate
from kata_runtime.resource.shares import RootfsMount, Shares
from kata_runtime.stdio.files import StdioFiles, StdioPaths
from kata_runtime.unikernel.boot import UnikernelBoot
from kata_runtime.unikernel.finding import find_unikernel

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.guest import GuestBoot
    from kata_runtime.container.guest_spec import GuestSource

_log = logging.getLogger(__name__)

_WAYS_OUT = {
    State.NEW: "create the container of the pod's sandbox first",
    State.BOOTING: "wait until the Create or Start that boots it returns",
    State.WAITING: "start that container first",
    State.ENDED: "a sandbox runs once, so create another",
}


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A container to create. config_path: the configuration file that containerd's options name, if any."""

    id: str
    bundle: str
    rootfs: tuple[RootfsMount, ...]
    stdio: StdioPaths
    config_path: str | None


class _Waiting(NamedTuple):
    """What the first container has while its sandbox waits. sources: the guest's path of each volume."""

    sources: dict[int, GuestSource]
    files: StdioFiles


class Creation:
    """Makes the containers of one sandbox, and takes away what they had on the host."""

    def __init__(self, sandbox: Sandbox, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        self._sandbox = sandbox
        self._broker = broker
        self._tasks = tasks
        self._shares = Shares(broker, sandbox.identity.shared_directory)
        self._block_rootfs = BlockRootfs(broker, self._shares)
        self._devices = BlockDevices()
        self._waiting: _Waiting | None = None

    async def create(self, request: CreateRequest) -> Container:
        """Make ready what is the host's, boot the sandbox unless it runs, create the container in the guest.

        Where the sandbox waits for its network, `complete` does the rest.

        Raises:
            InvalidRequestError, UnsupportedError, StateError, SandboxError, RpcError: nothing is left.
        """
        container = await self._read(request)
        first = not self._sandbox.running
        namespaces.refuse(container.spec, container.init.what, first=first)
        propagation.check(container.spec, container.init.what)
        if first:
            self._check_first(container)
        else:
            hooks.refuse(container.id, container.spec)
            self._sandbox.guest.check_further(container)
        files = await self.open_files(container.init)
        try:
            if first:
                await self._create_first(container, request, files)
            else:
                sources = await self._add_files(container, request.rootfs)
                await anyio.lowlevel.checkpoint_if_cancelled()  # from here on it is finished
                await finish(self._create_later(container, sources, files))
        except BaseException:
            files.close()
            await finish(self._undo(container))
            raise
        return container

    async def _undo(self, container: Container) -> None:
        if (stdio := container.init.stdio) is not None and self._sandbox.running:
            # It was created in the guest when its caller went away.
            stdio.close()
            await self._remove_from_guest(container)
        await self.take_away(container)

    async def open_files(self, process: Process) -> StdioFiles:
        """Open the FIFOs and logs of a process, through the broker. Raises UnsupportedError, BrokerError."""

        async def start_logger(uri: str) -> tuple[int, int]:
            if self._sandbox.running:
                raise UnsupportedError(
                    f"cannot log the output of {process.what} to {uri!r}: no program is started on the host "
                    "for a guest that runs already, so only a pod's first container has a logger; use a FIFO "
                    "or file:///path"
                )
            return await self._broker.start_logger(uri)

        broker = self._broker
        files = await StdioFiles.open(process.paths, broker.open_fifo, broker.open_log, start_logger)
        files.settle = broker.settle_logs
        return files

    async def _read(self, request: CreateRequest) -> Container:
        """The container that a bundle describes, as far as this side of the VM can check it."""
        spec = await load_spec(request.bundle, self._broker.read_spec)
        try:
            oci.spec_to_proto(spec)
        except oci.SpecError as error:
            raise InvalidRequestError(f"{request.bundle}/config.json: {error}") from None
        devices.check(request.id, spec)
        nodes = list(block_nodes(spec))
        limits = (spec.get("linux") or {}).get("resources") or {}
        resources.check(f"create container {request.id}", limits, {node.numbers for node in nodes})
        if left_out := guest_spec.left_out(spec):
            _log.warning("container %s: not in force in the guest: %s", request.id, ", ".join(left_out))
        init = Process(request.id, "", request.stdio, spec["process"])
        return Container(request.id, request.bundle, spec, init, nodes=nodes)

    def _check_first(self, container: Container) -> None:
        """See that a container may boot the sandbox: a pod's later ones do not, and nobody does it twice."""
        kind, state = oci_bundle.container_type(container.spec), self._sandbox.state
        if state is not State.NEW or kind is ContainerType.POD_CONTAINER:
            raise StateError(
                f"cannot create container {container.id}: {self._sandbox.description}; {_WAYS_OUT[state]}"
            )

    # -- the first container, and the sandbox with it ------------------------------------------------------

    async def _create_first(self, container: Container, request: CreateRequest, files: StdioFiles) -> None:
        """Boot the sandbox with this container's files and create it; end the sandbox when that fails."""
        sources: dict[int, GuestSource] = {}

        async def make_boot(configuration: Configuration) -> GuestBoot:
            return await self._make_boot(container, request.rootfs, configuration, sources)

        # A pod of Kubernetes has its network by now.
        alone = oci_bundle.container_type(container.spec) is ContainerType.SINGLE
        await self._sandbox.boot(container.spec, request.config_path, make_boot, may_wait=alone)
        if self._sandbox.state is State.WAITING:
            self._waiting = _Waiting(sources, files)
        else:
            await self._create_in_booted(container, sources, files)

    def is_waiting(self, container: Container) -> bool:
        """Whether a container waits for its machine, which `complete` boots."""
        return self._waiting is not None and container.init.stdio is None

    async def complete(self, container: Container) -> None:
        """Boot the sandbox that waits for its network, and create in the guest the container that waits too.

        Raises:
            UnsupportedError, SandboxError, RpcError: the sandbox has ended.
        """
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        try:
            await self._sandbox.boot_waiting()
            await self._create_in_booted(container, waiting.sources, waiting.files)
        except BaseException:
            waiting.files.close()
            raise

    async def _create_in_booted(
        self, container: Container, sources: dict[int, GuestSource], files: StdioFiles
    ) -> None:
        """Create the first container in the guest; end the sandbox when that fails."""
        try:
            await self._plug(container)
            await self._create_in_guest(container, sources, files)
        except BaseException as error:
            await self._sandbox.stop(f"its first container {container.id} was not created: {_reason(error)}")
            raise

    async def _make_boot(
        self,
        container: Container,
        rootfs: tuple[RootfsMount, ...],
        configuration: Configuration,
        sources: dict[int, GuestSource],
    ) -> GuestBoot:
        """Share the container's files, or make a disk of them; see by them what kind of guest it is.

        sources: gets where the guest sees each volume.
        """
        identity, shared = self._sandbox.identity, configuration.hypervisor.shares_files
        sources.update(await memory.give(container, self._broker))
        if shared:
            sources.update(await self._shares.share(container, rootfs))
        else:
            await self._shares.share_rootfs(container, rootfs)
        unikernel = await find_unikernel(container, self._broker)
        if unikernel is not None or not shared:
            devices.refuse_blocks(container.id, container.blocks, block_devices.NO_DISKS)
        if unikernel is not None:
            return UnikernelBoot(configuration, identity, self._broker, unikernel, container)
        registry.require_machine(configuration.hypervisor_name, configuration.hypervisor)
        if shared:
            count = len({node.device for node in container.blocks})
            boot = LinuxBoot(configuration, identity, self._broker, container.spec, first=count)
            if not boot.machine.capabilities.device_hotplug:
                devices.refuse_blocks(container.id, container.blocks, block_devices.NO_DISKS)
            await self._show(container, rootfs)
            return boot
        await self._shares.unshare(container)
        device = machine_spec.rootfs_device(configuration)
        disk = await self._block_rootfs.make(container, rootfs, device)
        return LinuxBoot(configuration, identity, self._broker, container.spec, (disk,), first=0)

    async def _show(self, container: Container, rootfs: tuple[RootfsMount, ...]) -> None:
        """Have a container that is alone in its pod seen at /proc/PID/root, where clients copy its files.

        Not so one that is on a block device, which would be in use until the pod has ended.
        """
        alone = oci_bundle.container_type(container.spec) is ContainerType.SINGLE
        if not alone or not {mount.type for mount in rootfs} <= {"overlay", "bind"}:
            return
        try:
            await self._broker.show_root(container.mounts[0])
        except RequestFailedError as error:
            _log.info("nobody sees the files of container %s at /proc/PID/root: %s", container.id, error)

    # -- further containers --------------------------------------------------------------------------------

    async def _add_files(
        self, container: Container, rootfs: tuple[RootfsMount, ...]
    ) -> dict[int, GuestSource]:
        """Share a container's files with the running guest, or plug in a disk of them.

        Returns where it sees each volume.
        """
        guest = self._sandbox.guest
        sources = await memory.give(container, self._broker)
        if guest.shares_files:
            sources |= await self._shares.share(container, rootfs)
            await self._plug(container)
            return sources
        devices.refuse_blocks(container.id, container.blocks, block_devices.NO_DISKS)
        if not guest.takes_disks:
            raise UnsupportedError(
                f"cannot create container {container.id}: the hypervisor shares no files and takes no disk "
                "while it runs, so a sandbox has one container; configure a hypervisor with virtio-fs"
            )
        disk = await self._block_rootfs.make_later(container, rootfs)
        node = await guest.add_disk(disk)
        container.disk = disk.id
        locate(container, node)
        return sources

    async def _plug(self, container: Container) -> None:
        """Plug in the block devices that a container is given."""
        if container.blocks:
            await self._devices.plug(container, self._sandbox.guest)

    async def _create_later(
        self, container: Container, sources: dict[int, GuestSource], files: StdioFiles
    ) -> None:
        """Create a container in the running guest, or leave none there; the agent's deadline bounds it."""
        try:
            await self._create_in_guest(container, sources, files)
        except RpcError as error:
            if error.code is Code.DEADLINE_EXCEEDED:
                # The guest is still at it, or has it and could not say so.
                await self._remove_from_guest(container)
            raise

    async def _remove_from_guest(self, container: Container) -> None:
        try:
            await self._sandbox.guest.remove_container(container.id)
        except (RpcError, HypervisorError, RuntimeRoomError) as error:
            _log.warning("the guest may still have container %s: %s", container.id, error)

    # -- every container -----------------------------------------------------------------------------------

    async def _create_in_guest(
        self, container: Container, sources: Mapping[int, GuestSource], files: StdioFiles
    ) -> None:
        async with self._sandbox.asked_to(f"create container {container.id}") as guest:
            container.init.stdio = await guest.create_container(container, sources, files)
        container.init.stdio.start(self._tasks)

    async def take_away(self, container: Container) -> None:
        """Unmount what a container had on the host, and take its disk out of the machine; idempotent."""
        if self._waiting is not None and self.is_waiting(container):
            self._waiting.files.close()
            self._waiting = None
        if container.plugged and self._sandbox.running:
            try:
                await self._devices.unplug(container, self._sandbox.guest)
            except (HypervisorError, RuntimeRoomError) as error:
                _log.warning("cannot take out a block device of container %s: %s", container.id, error)
        disk, container.disk = container.disk, ""
        if disk and self._sandbox.running:
            try:
                await self._sandbox.guest.remove_disk(disk)
            except (HypervisorError, RuntimeRoomError) as error:
                _log.warning("cannot take out the disk of container %s: %s", container.id, error)
        if await self._shares.unshare(container) and self._sandbox.running:
            try:
                await self._sandbox.guest.forget_removed_shares()
            except (RpcError, HypervisorError, RuntimeRoomError) as error:
                _log.warning("the guest may hold files of container %s open: %s", container.id, error)


def _reason(error: BaseException) -> str:
    return str(error) or "the request was cancelled"
