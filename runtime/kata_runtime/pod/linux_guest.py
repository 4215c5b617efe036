"""A Linux guest: what it is asked for is asked of its agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kata_agent import oci
from kata_agent.constants import STREAM_PORT
from kata_agent.protos import agent_pb2
from kata_runtime.container import guest_spec
from kata_runtime.container.guest import Guest
from kata_runtime.pod import machine_spec
from kata_runtime.pod.health import HealthCheck
from kata_runtime.stdio.polled import PolledStdio
from kata_runtime.stdio.pumps import Stdio, connect
from kata_runtime.unikernel.finding import refuse_unikernel

if TYPE_CHECKING:
    from kata_agent.client import AgentClient
    from kata_agent.protos import oci_pb2
    from kata_configuration import Configuration
    from kata_hypervisor.contract import Disk, Hypervisor
    from kata_runtime.container.process import Container, Process
    from kata_runtime.stdio.files import StdioFiles

SIGNAL_BUDGET = 10.0
"""Seconds that the agent may take to pass a signal on."""


class LinuxGuest(Guest):
    """A Linux guest whose agent answers. streams: whether the agent has them; else stdio is polled."""

    def __init__(
        self, configuration: Configuration, machine: Hypervisor, agent: AgentClient, *, streams: bool
    ) -> None:
        self.shares_files = machine_spec.shares_files(configuration)
        self.takes_disks = machine.capabilities.block_hotplug
        self._health_timeout = configuration.agent.health_check_request_timeout_ms / 1e3
        self._disable_seccomp = configuration.runtime.disable_guest_seccomp
        self._machine = machine
        self._agent = agent
        self._streams = streams

    # -- its end -------------------------------------------------------------------------------------------

    async def failure(self, on_oom: Callable[[str], None]) -> str:
        """See Guest."""
        return await HealthCheck(self._machine, self._agent, self._health_timeout, on_oom).failure()

    async def stop(self) -> None:
        """See Guest."""
        await self._agent.aclose()
        await self._machine.stop()

    # -- containers ----------------------------------------------------------------------------------------

    def check_further(self, container: Container) -> None:
        """See Guest."""
        refuse_unikernel(container)

    async def create_container(
        self, container: Container, sources: Mapping[int, str], files: StdioFiles
    ) -> Stdio:
        """See Guest."""
        amended = guest_spec.amend(
            container.spec, container.id, sources, disable_guest_seccomp=self._disable_seccomp
        )
        request = agent_pb2.CreateContainerRequest(
            container_id=container.id,
            exec_id=container.id,
            OCI=oci.spec_to_proto(amended),
            storages=container.storages,
        )
        stdio = await self._connect(container.init, files, request)
        try:
            await self._agent.create_container(request)
        except BaseException:
            stdio.close()
            raise
        return stdio

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
        await self._agent.remove_container(agent_pb2.RemoveContainerRequest(container_id=container_id))

    async def update_container(self, container_id: str, resources: oci_pb2.LinuxResources) -> None:
        """See Guest."""
        request = agent_pb2.UpdateContainerRequest(container_id=container_id, resources=resources)
        await self._agent.update_container(request)

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
            process=oci.process_to_proto(guest_spec.amend_process(dict(process.spec))),
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
            streams, numbers = await connect(files, lambda: self._machine.transport.connect(STREAM_PORT))
        except BaseException:
            files.close()
            raise
        request.stdin_port, request.stdout_port, request.stderr_port = numbers.values()
        return Stdio(files, streams)

    async def wait_process(self, process: Process) -> int:
        """See Guest."""
        request = agent_pb2.WaitProcessRequest(container_id=process.container_id, exec_id=process.guest_id)
        return (await self._agent.wait_process(request)).status

    async def signal_process(self, process: Process, number: int, *, everyone: bool) -> None:
        """See Guest."""
        request = agent_pb2.SignalProcessRequest(
            container_id=process.container_id, exec_id="" if everyone else process.guest_id, signal=number
        )
        await self._agent.signal_process(request, timeout=SIGNAL_BUDGET)

    async def resize_terminal(self, process: Process, columns: int, rows: int) -> None:
        """See Guest."""
        request = agent_pb2.TtyWinResizeRequest(
            container_id=process.container_id, exec_id=process.guest_id, row=rows, column=columns
        )
        await self._agent.tty_win_resize(request)

    # -- disks ---------------------------------------------------------------------------------------------

    async def add_disk(self, disk: Disk) -> str:
        """See Guest."""
        await self._machine.add_disk(disk)
        return self._machine.disk_node(disk.id)

    async def remove_disk(self, name: str) -> None:
        """See Guest."""
        await self._machine.remove_disk(name)
