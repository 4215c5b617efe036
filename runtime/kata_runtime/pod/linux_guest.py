"""A Linux guest: what it is asked for is asked of its agent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import anyio

from kata_agent import oci
from kata_agent.constants import STREAM_PORT
from kata_agent.protos import agent_pb2
from kata_agent.transport import open_stream
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.concurrency import race
from kata_runtime.container import guest_spec, namespaces, resources
from kata_runtime.container.bundle import ContainerType, JsonObject, container_type
from kata_runtime.container.guest import Guest
from kata_runtime.container.guest_spec import NO_SETTINGS, PodSettings
from kata_runtime.errors import UnsupportedError
from kata_runtime.pod.health import PAUSE, HealthCheck
from kata_runtime.stdio.polled import PolledStdio
from kata_runtime.stdio.pumps import Stdio, connect
from kata_runtime.unikernel.finding import refuse_unikernel

if TYPE_CHECKING:
    import socket

    from kata_agent.client import AgentClient
    from kata_configuration import Configuration
    from kata_hypervisor.contract import Disk, Hypervisor
    from kata_runtime.container.guest_spec import GuestSource
    from kata_runtime.container.process import Container, Process
    from kata_runtime.pod.host_cpus import HostCpus
    from kata_runtime.pod.port_forwarding import Forwarder
    from kata_runtime.pod.room import Room
    from kata_runtime.stdio.files import StdioFiles


class LinuxGuest(Guest):
    """A Linux guest whose agent answers.

    streams: whether the agent has them; else stdio is polled. forwarder: of connections to its ports, if its
    agent has what that takes; closed when the guest is stopped. settings: of the pod, for every container
    that does not say otherwise; sysctls are of namespaces which containers share, and the first of them sets
    them. room: of the machine for containers. cpus: of the host that they name.
    """

    def __init__(
        self,
        configuration: Configuration,
        machine: Hypervisor,
        agent: AgentClient,
        *,
        streams: bool,
        room: Room,
        cpus: HostCpus,
        forwarder: Forwarder | None = None,
        settings: PodSettings = NO_SETTINGS,
    ) -> None:
        self.shares_files = configuration.hypervisor.shares_files
        self.takes_disks = machine.capabilities.block_hotplug
        self.takes_devices = machine.capabilities.device_hotplug
        self._health_timeout = configuration.agent.health_check_request_timeout_ms / 1e3
        self._disable_seccomp = configuration.runtime.disable_guest_seccomp
        self._machine = machine
        self._agent = agent
        self._streams = streams
        self._forwarder = forwarder
        self._settings = settings
        self._room = room
        self._cpus = cpus
        self._with_own_processes: set[str] = set()

    @property
    def machine(self) -> str:
        """See Guest."""
        return str(self._room.size)

    # -- its end -------------------------------------------------------------------------------------------

    async def failure(self, on_oom: Callable[[str], None]) -> str:
        """See Guest."""
        check = HealthCheck(self._machine, self._agent, self._health_timeout, on_oom)
        if self._forwarder is None:
            return await check.failure()
        return await race(check.failure, self._forwarder.serve)

    async def stop(self) -> None:
        """See Guest."""
        if self._forwarder is not None:
            self._forwarder.close()
        await self._agent.aclose()
        await self._machine.stop()

    # -- containers ----------------------------------------------------------------------------------------

    def check_further(self, container: Container) -> None:
        """See Guest."""
        refuse_unikernel(container)
        self._target_of(container)

    def _target_of(self, container: Container) -> str:
        """The container whose process namespace another joins; "" for the pod's, and for one of its own.

        It names the pod's init on the host, as every container of the pod does: which of them is meant is
        known where one only has processes of its own. An ephemeral container has such a target.
        """
        others = self._with_own_processes
        if not namespaces.shares_processes(container.spec) or not others:
            return ""
        if len(others) > 1:
            raise UnsupportedError(
                f"cannot create container {container.id}: it is to share the processes of another container "
                f"of its pod, and of {len(others)} that have their own it cannot be told which; set "
                "shareProcessNamespace in the pod, or leave out the target"
            )
        return next(iter(others))

    async def create_container(
        self, container: Container, sources: Mapping[int, GuestSource], files: StdioFiles
    ) -> Stdio:
        """See Guest."""
        limits = (container.spec.get("linux") or {}).get("resources") or {}
        action = f"create container {container.id}"
        async with (
            self._room.made_for(action, container.id, limits),
            self._cpus.named_by(action, container.id, limits),
        ):
            return await self._create_container(container, sources, files)

    async def _create_container(
        self, container: Container, sources: Mapping[int, GuestSource], files: StdioFiles
    ) -> Stdio:
        target = self._target_of(container)
        amended = guest_spec.amend(
            container.spec,
            container.id,
            sources,
            disable_guest_seccomp=self._disable_seccomp,
            vcpus=self._room.most.vcpus,
            processes_of=target,
            settings=self._settings,
            nodes=container.nodes,
        )
        request = agent_pb2.CreateContainerRequest(
            container_id=container.id,
            exec_id=container.id,
            OCI=oci.spec_to_proto(amended),
            storages=[*container.storages, *container.memory.values()],
            devices=[
                agent_pb2.Device(id=node.device, type="blk", vm_path=node.found_by, container_path=node.path)
                for node in container.nodes
            ],
            sandbox_pidns=not target and self._is_in_pods_processes(container),
        )
        stdio = await self._connect(container.init, files, request)
        try:
            await self._agent.create_container(request)
        except BaseException:
            stdio.close()
            raise
        if not target and not request.sandbox_pidns:
            self._with_own_processes.add(container.id)
        return stdio

    def _is_in_pods_processes(self, container: Container) -> bool:
        """Whether it is in the process namespace of the pod: that of the sandbox's own container."""
        is_sandbox = container_type(container.spec) is ContainerType.POD_SANDBOX
        return is_sandbox or namespaces.shares_processes(container.spec)

    async def start_container(self, container_id: str) -> None:
        """See Guest."""
        await self._agent.start_container(agent_pb2.StartContainerRequest(container_id=container_id))

    async def pause_container(self, container_id: str) -> None:
        """See Guest."""
        await self._agent.pause_container(agent_pb2.PauseContainerRequest(container_id=container_id))

    async def resume_container(self, container_id: str) -> None:
        """See Guest."""
        await self._agent.resume_container(agent_pb2.ResumeContainerRequest(container_id=container_id))

    async def remove_container(self, container_id: str) -> None:
        """See Guest."""
        self._with_own_processes.discard(container_id)
        self._room.leave(container_id)
        await self._cpus.leave(container_id)
        await self._agent.remove_container(agent_pb2.RemoveContainerRequest(container_id=container_id))

    async def forget_removed_shares(self) -> None:
        """See Guest."""
        if self.shares_files:
            await self._agent.remove_stale_virtiofs_share_mounts(
                agent_pb2.RemoveStaleVirtiofsShareMountsRequest()
            )

    async def update_container(self, container: Container, limits: JsonObject) -> None:
        """See Guest."""
        action, most = f"update container {container.id}", self._room.most.vcpus
        linux = container.spec["linux"] = container.spec.get("linux") or {}
        before = linux.get("resources") or {}
        limits = resources.changes(before, limits)
        resources.check_update(action, before, limits, most, self._room.keeps)
        merged = resources.merge(before, limits)
        async with (
            self._room.made_for(action, container.id, merged),
            self._cpus.named_by(action, container.id, merged),
        ):
            encoded = oci.resources_to_proto(resources.amend(copy.deepcopy(limits), most))
            request = agent_pb2.UpdateContainerRequest(container_id=container.id, resources=encoded)
            await self._agent.update_container(request)
            linux["resources"] = resources.merge(linux.get("resources") or {}, limits)
        await self._cpus.settle()  # the machine may have become smaller

    async def container_stats(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """See Guest."""
        request = agent_pb2.StatsContainerRequest(container_id=container_id)
        return await self._agent.stats_container(request)

    # -- processes -----------------------------------------------------------------------------------------

    async def exec_process(self, process: Process, files: StdioFiles) -> Stdio:
        """See Guest."""
        request = agent_pb2.ExecProcessRequest(
            container_id=process.container_id,
            exec_id=process.exec_id,
            process=oci.process_to_proto(guest_spec.amend_process(dict(process.spec), process.pending_size)),
        )
        stdio = await self._connect(process, files, request)
        try:
            await self._agent.exec_process(request)
        except BaseException:
            stdio.close()
            raise
        return stdio

    async def _connect(
        self,
        process: Process,
        files: StdioFiles,
        request: agent_pb2.CreateContainerRequest | agent_pb2.ExecProcessRequest,
    ) -> Stdio:
        """Connect a process's streams, and write into the request by which numbers the guest knows them."""
        if not self._streams:
            return PolledStdio(
                files,
                self._agent,
                process.container_id,
                process.guest_id,
                terminal=process.paths.terminal,
            )
        try:
            streams, numbers = await connect(files, self._open_stream)
        except BaseException:
            files.close()
            raise
        request.stdin_port, request.stdout_port, request.stderr_port = numbers.values()
        return Stdio(files, streams)

    async def _open_stream(self) -> tuple[socket.socket, int]:
        return await open_stream(self._machine.transport, STREAM_PORT, self._agent.timeout)

    async def wait_process(self, process: Process) -> int:
        """See Guest."""
        request = agent_pb2.WaitProcessRequest(container_id=process.container_id, exec_id=process.guest_id)
        while True:
            try:
                return (await self._agent.wait_process(request)).status
            except RpcError as error:  # the guest had no room for one more request: the process is not over
                if error.code is not Code.RESOURCE_EXHAUSTED:
                    raise
            await anyio.sleep(PAUSE)

    async def signal_process(self, process: Process, number: int, *, everyone: bool) -> None:
        """See Guest."""
        request = agent_pb2.SignalProcessRequest(
            container_id=process.container_id, exec_id="" if everyone else process.guest_id, signal=number
        )
        await self._agent.signal_process(request)

    async def resize_terminal(self, process: Process, columns: int, rows: int) -> None:
        """See Guest."""
        request = agent_pb2.TtyWinResizeRequest(
            container_id=process.container_id, exec_id=process.guest_id, row=rows, column=columns
        )
        await self._agent.tty_win_resize(request)

    # -- network -------------------------------------------------------------------------------------------

    async def list_interfaces(self) -> agent_pb2.Interfaces:
        """See Guest."""
        return await self._agent.list_interfaces(agent_pb2.ListInterfacesRequest())

    async def list_routes(self) -> agent_pb2.Routes:
        """See Guest."""
        return await self._agent.list_routes(agent_pb2.ListRoutesRequest())

    # -- disks ---------------------------------------------------------------------------------------------

    async def add_disk(self, disk: Disk) -> str:
        """See Guest."""
        await self._machine.add_disk(disk)
        return self._machine.disk_node(disk.id)

    async def remove_disk(self, name: str) -> None:
        """See Guest."""
        await self._machine.remove_disk(name)
