"""Deleting a process, and a container with what it had in the guest and on the host.

Not to be cancelled: see `pod/tasks.py`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kata_agent.ttrpc.status import RpcError
from kata_hypervisor.errors import HypervisorError
from kata_runtime.container.process import KILLED, Container, Process
from kata_runtime.container.states import Event, State
from kata_runtime.errors import RuntimeRoomError

if TYPE_CHECKING:
    from kata_runtime.pod.containers import Containers
    from kata_runtime.pod.creation import Creation
    from kata_runtime.pod.exits import Exits
    from kata_runtime.pod.sandbox import Sandbox
    from kata_runtime.pod.task_events import TaskEvents

_log = logging.getLogger(__name__)


class Deletion:
    """Deletes the containers and execs of one sandbox; with its last container it ends the sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        containers: Containers,
        creation: Creation,
        exits: Exits,
        events: TaskEvents,
    ) -> None:
        self._sandbox = sandbox
        self._containers = containers
        self._creation = creation
        self._exits = exits
        self._events = events

    async def delete(self, process: Process) -> None:
        """Delete a process that has exited, or a container that was never started."""
        async with process.turn:
            waiting = process.state is State.CREATED and not process.exec_id
            if waiting:
                # Created, never started: its process waits in the guest, and goes with its container.
                self._exits.record(process, KILLED)
            process.check(Event.DELETE)
            if process.stdio is not None:
                if not waiting:
                    await process.stdio.finish()
                process.stdio.close()
            container = self._containers.container(process.container_id)
            if process.exec_id:
                container.execs.pop(process.exec_id, None)
            else:
                await self._delete_container(container)
            process.apply(Event.DELETE)

    async def _delete_container(self, container: Container) -> None:
        if self._sandbox.running:
            try:
                await self._sandbox.guest.remove_container(container.id)
            except (RpcError, HypervisorError, RuntimeRoomError) as error:
                _log.warning("the guest could not remove container %s: %s", container.id, error)
        if container.id == self._sandbox.identity.id:
            # containerd takes the shim for dead after this, whatever else is in the pod.
            reason = f"the sandbox's container {container.id} was deleted"
            self._exits.end_all(f"its pod ended: {reason}")
            await self._sandbox.stop(reason)
        elif self._containers.is_last(container) and not self._sandbox.outlives_containers:
            await self._sandbox.stop(f"its last container {container.id} was deleted")
        await self._creation.take_away(container)
        if not self._sandbox.running:
            await self._sandbox.run_hooks("poststop")
        self._containers.remove(container)
        self._events.deleted(container)
