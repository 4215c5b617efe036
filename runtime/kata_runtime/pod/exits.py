"""How the exit of a process becomes known: from the guest, or because the sandbox has ended."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from kata_agent.ttrpc.status import RpcError
from kata_hypervisor.errors import HypervisorError
from kata_runtime.container.process import KILLED, Process
from kata_runtime.container.states import State
from kata_runtime.errors import RuntimeRoomError

if TYPE_CHECKING:
    from kata_runtime.pod.containers import Containers
    from kata_runtime.pod.sandbox import Sandbox
    from kata_runtime.pod.task_events import TaskEvents

_log = logging.getLogger(__name__)

END_BUDGET = 10.0
"""Seconds in which a sandbox that does not answer any more is seen to have ended."""


class Exits:
    """Records the exit of each process of a sandbox once, and publishes it."""

    def __init__(
        self, sandbox: Sandbox, containers: Containers, tasks: anyio.abc.TaskGroup, events: TaskEvents
    ) -> None:
        self._sandbox = sandbox
        self._containers = containers
        self._tasks = tasks
        self._events = events

    def await_exit(self, process: Process) -> None:
        """Wait in the background for the exit of a process that is in the guest."""
        self._tasks.start_soon(self._await_exit, process)

    async def _await_exit(self, process: Process) -> None:
        try:
            status = await self._sandbox.guest.wait_process(process)
        except (RpcError, HypervisorError, RuntimeRoomError) as error:
            if process.exit is not None:
                return
            # When the sandbox has ended, `end_all` says so with its reason; wait for it.
            with anyio.move_on_after(END_BUDGET):
                await process.wait()
                return
            _log.error(
                "cannot learn the exit status of %s: %s; it is reported as killed", process.what, error
            )
            status = KILLED
        if process.stdio is not None:
            await process.stdio.deliver()
        async with process.turn:
            self.record(process, status & 0xFF if status >= 0 else KILLED)

    def record(self, process: Process, status: int) -> None:
        """Record and publish the exit of a process, and before it of its container's execs; once."""
        if not process.exec_id and process.state is not State.STOPPED:
            container = self._containers.find(process.container_id)
            for started in list(container.execs.values()) if container else ():
                if started.state in (State.RUNNING, State.PAUSED):
                    self.record(started, KILLED)
        if (recorded := process.record_exit(status)) is None:
            return
        if process.stdio is not None:
            self._tasks.start_soon(process.stdio.finish)
        self._events.exited(process, recorded)

    def end_all(self, reason: str) -> None:
        """The sandbox has ended: so has every process in it, with a status that is not zero."""
        for container in self._containers.all:
            if container.init.state is not State.STOPPED and container.init.stdio is not None:
                container.init.stdio.notice(f"kata: container {container.id} was stopped: {reason}\n")
            self.record(container.init, KILLED)
