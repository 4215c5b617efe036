"""Making a container: its files on the host, the machine if it is the first, its place in the guest.

The order matters: what cannot work is refused before a machine is started for it, and what the first
container needs of the host is known before the guest runs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import anyio
import anyio.abc

from kata_agent import oci
from kata_agent.protos import agent_pb2, oci_pb2
from kata_hypervisor.contract import Hypervisor
from kata_hypervisor.errors import HypervisorError
from kata_runtime.container import bundle as oci_bundle
from kata_runtime.container import guest_spec
from kata_runtime.container.bundle import ContainerType, JsonObject
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import InvalidRequestError, StateError, UnsupportedError
from kata_runtime.pod import streams
from kata_runtime.pod.sandbox import Ready, Sandbox, in_the_guest
from kata_runtime.pod.spec import load_spec
from kata_runtime.resource.block_rootfs import BlockRootfs, locate
from kata_runtime.resource.shares import RootfsMount, Shares
from kata_runtime.stdio.pumps import StdioFiles, StdioPaths
from kata_runtime.unikernel.guest import UnikernelGuest, find_unikernel, refuse_unikernel

_log = logging.getLogger(__name__)


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

    def __init__(self, sandbox: Sandbox, tasks: anyio.abc.TaskGroup) -> None:
        self._sandbox = sandbox
        self._tasks = tasks
        self._shares = Shares(sandbox.broker, sandbox.identity.shared_directory)
        self._block_rootfs = BlockRootfs(sandbox.broker, self._shares)

    async def create(self, request: CreateRequest) -> Container:
        """Make ready what is the host's, boot the sandbox unless it runs, create the container in the guest.

        Raises:
            InvalidRequestError, UnsupportedError, StateError, SandboxError, RpcError: nothing is left.
        """
        spec = await load_spec(request.bundle, self._sandbox.broker.read_spec)
        _refuse_host_hooks(spec)
        kind = oci_bundle.container_type(spec)
        init = Process(request.id, "", request.stdio, spec["process"])
        container = Container(request.id, request.bundle, spec, init)
        _encode(container.spec, container)
        booted_here = not self._sandbox.running
        if not booted_here:
            refuse_unikernel(container)
        if booted_here and kind is ContainerType.POD_CONTAINER and self._sandbox.configuration is None:
            raise StateError(f"the sandbox of container {request.id} is not running")
        files = await streams.open_files(self._sandbox, init)
        sources: dict[int, str] = {}

        async def make_ready(device: str | None) -> Ready:
            """Share the container's files, or make the disk that the guest knows as `device` of them."""
            if device is None:
                sources.update(await self._shares.share(container, request.rootfs))
            else:
                await self._shares.share_rootfs(container, request.rootfs)
            found = await find_unikernel(container, self._sandbox.broker)
            if found is not None:
                return Ready(unikernel=UnikernelGuest(found, container))
            if device is None:
                return Ready()
            await self._shares.unshare(container)
            return Ready(disks=(await self._block_rootfs.make(container, request.rootfs, device),))

        try:
            if booted_here:
                await self._sandbox.boot(spec, request.config_path, make_ready)
            else:
                sources.update(await self._add_files(container, request.rootfs))
            await self._create_in_guest(container, sources, files)
        except BaseException:
            files.close()
            with anyio.CancelScope(shield=True):
                await self._undo_create(container, stop_sandbox=booted_here)
            raise
        return container

    async def _add_files(self, container: Container, rootfs: tuple[RootfsMount, ...]) -> dict[int, str]:
        """Share a container's files with the running guest, or plug in a disk of them.

        Returns the guest's path of each volume.
        """
        if self._sandbox.shares_files:
            return await self._shares.share(container, rootfs)
        machine = self._sandbox.hypervisor
        if not isinstance(machine, Hypervisor) or not machine.capabilities.block_hotplug:
            raise UnsupportedError(
                f"container {container.id}: this hypervisor shares no files and takes no disk later, so its "
                "sandbox has one container: use a hypervisor with virtio-fs"
            )
        disk = await self._block_rootfs.make_later(container, rootfs)
        await machine.add_disk(disk)
        container.disk = disk.id
        locate(container, machine.disk_node(disk.id))
        return {}

    async def _undo_create(self, container: Container, *, stop_sandbox: bool) -> None:
        if container.init.stdio is not None:
            container.init.stdio.close()
        if stop_sandbox:
            await self._sandbox.stop()
        await self.take_away(container)

    async def _create_in_guest(
        self, container: Container, sources: dict[int, str], files: StdioFiles
    ) -> None:
        configuration = self._sandbox.configuration
        assert configuration is not None
        guest = guest_spec.amend(
            container.spec,
            container.id,
            sources,
            disable_guest_seccomp=configuration.runtime.disable_guest_seccomp,
        )
        encoded = _encode(guest, container)
        ports = await streams.connect(self._sandbox, container.init, files)
        request = agent_pb2.CreateContainerRequest(
            container_id=container.id,
            exec_id=container.id,
            OCI=encoded,
            storages=container.storages,
            stdin_port=ports.get("stdin", 0),
            stdout_port=ports.get("stdout", 0),
            stderr_port=ports.get("stderr", 0),
        )
        with in_the_guest(self._sandbox, f"create container {container.id}"):
            await self._sandbox.agent.create_container(request)
        assert container.init.stdio is not None
        container.init.stdio.start(self._tasks)

    async def take_away(self, container: Container) -> None:
        """Unmount what a container had on the host, and take its disk out of the machine; idempotent."""
        disk, container.disk = container.disk, ""
        if disk and self._sandbox.running:
            machine = self._sandbox.hypervisor
            assert isinstance(machine, Hypervisor)
            try:
                await machine.remove_disk(disk)
            except HypervisorError as error:
                _log.warning("container %s: %s", container.id, error)
        await self._shares.unshare(container)


def _encode(spec: JsonObject, container: Container) -> oci_pb2.Spec:
    try:
        return oci.spec_to_proto(spec)
    except oci.SpecError as error:
        raise InvalidRequestError(f"{container.bundle}/config.json: {error}") from None


def _refuse_host_hooks(spec: JsonObject) -> None:
    hooks = spec.get("hooks") or {}
    for stage in ("prestart", "createRuntime", "createContainer", "poststart", "poststop"):
        if hooks.get(stage):
            raise UnsupportedError(
                f"the bundle asks for {stage} hooks, which this runtime does not run: remove hooks.{stage}"
            )
