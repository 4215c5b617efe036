"""Making a container: its files on the host, the machine if it is the first, its place in the guest.

The order matters: what cannot work is refused before a machine is started for it, and what the first
container needs of the host is known before the guest runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.abc

from kata_agent import oci
from kata_hypervisor.concurrency import finish
from kata_hypervisor.errors import HypervisorError
from kata_runtime.container import bundle as oci_bundle
from kata_runtime.container.bundle import ContainerType, JsonObject
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import InvalidRequestError, RuntimeRoomError, StateError, UnsupportedError
from kata_runtime.pod import machine_spec
from kata_runtime.pod.linux_boot import LinuxBoot
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.spec import load_spec
from kata_runtime.pod.states import State
from kata_runtime.resource.block_rootfs import BlockRootfs, locate
from kata_runtime.resource.shares import RootfsMount, Shares
from kata_runtime.stdio.files import StdioFiles, StdioPaths
from kata_runtime.unikernel.boot import UnikernelBoot
from kata_runtime.unikernel.finding import find_unikernel

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.guest import GuestBoot

_log = logging.getLogger(__name__)

_WAYS_OUT = {
    State.NEW: "create the container of the pod's sandbox first",
    State.BOOTING: "wait until the Create that boots it returns",
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


class Creation:
    """Makes the containers of one sandbox, and takes away what they had on the host."""

    def __init__(self, sandbox: Sandbox, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        self._sandbox = sandbox
        self._broker = broker
        self._tasks = tasks
        self._shares = Shares(broker, sandbox.identity.shared_directory)
        self._block_rootfs = BlockRootfs(broker, self._shares)

    async def create(self, request: CreateRequest) -> Container:
        """Make ready what is the host's, boot the sandbox unless it runs, create the container in the guest.

        Raises:
            InvalidRequestError, UnsupportedError, StateError, SandboxError, RpcError: nothing is left.
        """
        container = await self._read(request)
        first = not self._sandbox.running
        if first:
            self._check_first(container)
        else:
            self._sandbox.guest.check_further(container)
        files = await self.open_files(container.init)
        try:
            if first:
                await self._create_first(container, request, files)
            else:
                sources = await self._add_files(container, request.rootfs)
                await self._create_in_guest(container, sources, files)
        except BaseException:
            files.close()
            await finish(self.take_away(container))
            raise
        return container

    async def open_files(self, process: Process) -> StdioFiles:
        """Open the FIFOs and logs of a process, through the broker. Raises UnsupportedError, BrokerError."""
        return await StdioFiles.open(process.paths, self._broker.open_fifo, self._broker.open_log)

    async def _read(self, request: CreateRequest) -> Container:
        """The container that a bundle describes, as far as this side of the VM can check it."""
        spec = await load_spec(request.bundle, self._broker.read_spec)
        _refuse_host_hooks(spec)
        try:
            oci.spec_to_proto(spec)
        except oci.SpecError as error:
            raise InvalidRequestError(f"{request.bundle}/config.json: {error}") from None
        init = Process(request.id, "", request.stdio, spec["process"])
        return Container(request.id, request.bundle, spec, init)

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
        sources: dict[int, str] = {}

        async def make_boot(configuration: Configuration) -> GuestBoot:
            return await self._make_boot(container, request.rootfs, configuration, sources)

        await self._sandbox.boot(container.spec, request.config_path, make_boot)
        try:
            await self._create_in_guest(container, sources, files)
        except BaseException as error:
            await self._sandbox.stop(f"its first container {container.id} was not created: {_reason(error)}")
            raise

    async def _make_boot(
        self,
        container: Container,
        rootfs: tuple[RootfsMount, ...],
        configuration: Configuration,
        sources: dict[int, str],
    ) -> GuestBoot:
        """Share the container's files, or make a disk of them; see by them what kind of guest it is.

        sources: gets the guest's path of each volume.
        """
        identity, shared = self._sandbox.identity, machine_spec.shares_files(configuration)
        if shared:
            sources.update(await self._shares.share(container, rootfs))
        else:
            await self._shares.share_rootfs(container, rootfs)
        unikernel = await find_unikernel(container, self._broker)
        if unikernel is not None:
            return UnikernelBoot(configuration, identity, self._broker, unikernel, container)
        if shared:
            return LinuxBoot(configuration, identity, self._broker, container.spec)
        await self._shares.unshare(container)
        device = machine_spec.rootfs_device(configuration)
        disk = await self._block_rootfs.make(container, rootfs, device)
        return LinuxBoot(configuration, identity, self._broker, container.spec, (disk,))

    # -- further containers --------------------------------------------------------------------------------

    async def _add_files(self, container: Container, rootfs: tuple[RootfsMount, ...]) -> dict[int, str]:
        """Share a container's files with the running guest, or plug in a disk of them.

        Returns the guest's path of each volume.
        """
        guest = self._sandbox.guest
        if guest.shares_files:
            return await self._shares.share(container, rootfs)
        if not guest.takes_disks:
            raise UnsupportedError(
                f"cannot create container {container.id}: the hypervisor shares no files and takes no disk "
                "while it runs, so a sandbox has one container; configure a hypervisor with virtio-fs"
            )
        disk = await self._block_rootfs.make_later(container, rootfs)
        node = await guest.add_disk(disk)
        container.disk = disk.id
        locate(container, node)
        return {}

    # -- every container -----------------------------------------------------------------------------------

    async def _create_in_guest(
        self, container: Container, sources: Mapping[int, str], files: StdioFiles
    ) -> None:
        with self._sandbox.asked_to(f"create container {container.id}") as guest:
            container.init.stdio = await guest.create_container(container, sources, files)
        container.init.stdio.start(self._tasks)

    async def take_away(self, container: Container) -> None:
        """Unmount what a container had on the host, and take its disk out of the machine; idempotent."""
        disk, container.disk = container.disk, ""
        if disk and self._sandbox.running:
            try:
                await self._sandbox.guest.remove_disk(disk)
            except (HypervisorError, RuntimeRoomError) as error:
                _log.warning("cannot take out the disk of container %s: %s", container.id, error)
        await self._shares.unshare(container)


def _reason(error: BaseException) -> str:
    return str(error) or "the request was cancelled"


def _refuse_host_hooks(spec: JsonObject) -> None:
    hooks = spec.get("hooks") or {}
    for stage in ("prestart", "createRuntime", "createContainer", "poststart", "poststop"):
        if hooks.get(stage):
            raise UnsupportedError(
                f"cannot create the container: config.json has {stage} hooks, which are not supported; "
                f"remove hooks.{stage}"
            )
