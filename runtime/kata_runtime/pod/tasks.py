"""What containerd can ask of the containers of one sandbox, in terms of containers and processes.

State, Wait, Pids and Delete are answered from memory in every state, also while a container is being
created and after the guest has died; only what needs the guest asks the guest, always with a deadline.

What changes a process here and in the guest is finished once it has begun: a caller that goes away, such as a
containerd that is restarted, must not leave it half done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio.abc
from google.protobuf.message import Message

from kata_agent import oci
from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.concurrency import finish
from kata_runtime.container import bundle as oci_bundle
from kata_runtime.container.bundle import JsonObject
from kata_runtime.container.process import KILLED, Container, Process
from kata_runtime.container.states import Event, State
from kata_runtime.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    StateError,
)
from kata_runtime.identity import check_id
from kata_runtime.pod.containers import Containers
from kata_runtime.pod.creation import CreateRequest, Creation
from kata_runtime.pod.deletion import Deletion
from kata_runtime.pod.exits import Exits
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.task_events import TaskEvents
from kata_runtime.stdio.files import StdioPaths
from kata_runtime.stdio.pumps import Stdio

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker

SIGKILL = 9


class Tasks:
    """The containers of one sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        broker: Broker,
        tasks: anyio.abc.TaskGroup,
        publish: Callable[[Message], None],
    ) -> None:
        self._sandbox = sandbox
        self._tasks = tasks
        self._creation = Creation(sandbox, broker, tasks)
        self._containers = Containers(sandbox.identity.id)
        self._events = TaskEvents(sandbox, publish)
        self._exits = Exits(sandbox, self._containers, tasks, self._events)
        self._deletion = Deletion(sandbox, self._containers, self._creation, self._exits, self._events)

    # -- looking up ----------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether there is no container, and none under way."""
        return self._containers.empty

    def container(self, container_id: str) -> Container:
        """A container by its id. Raises NotFoundError, StateError."""
        return self._containers.container(container_id)

    def process(self, container_id: str, exec_id: str) -> Process:
        """The init process, or an exec. Raises NotFoundError, StateError."""
        return self._containers.process(container_id, exec_id)

    # -- creating ------------------------------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> Container:
        """Create a container; the first one of a sandbox boots the virtual machine.

        Raises:
            AlreadyExistsError, StateError, InvalidRequestError, UnsupportedError, SandboxError: with nothing
                left behind.
        """
        check_id(request.id, "container id")
        with self._containers.claim(request.id):
            container = await self._creation.create(request)
        self._containers.add(container)
        self._events.created(container)
        self._exits.await_exit(container.init)
        return container

    async def exec(self, container_id: str, exec_id: str, spec: object, paths: StdioPaths) -> None:
        """Record an exec; `start` runs it. Raises AlreadyExistsError, NotFoundError, InvalidRequestError."""
        container = self.container(container_id)
        check_id(exec_id, "exec id")
        if exec_id in container.execs or exec_id == container_id:
            raise AlreadyExistsError(
                f"exec {exec_id} exists already in container {container_id}: choose another id"
            )
        if container.init.state in (State.STOPPED, State.DELETED):
            raise StateError(f"cannot exec in container {container_id}: it is {container.init.state.value}")
        checked = oci_bundle.check_process(spec, f"exec {exec_id}")
        try:
            oci.process_to_proto(checked)
        except oci.SpecError as error:
            raise InvalidRequestError(f"exec {exec_id}: {error}") from None
        process = container.execs[exec_id] = Process(container_id, exec_id, paths, checked)
        self._events.exec_added(process)

    # -- running -------------------------------------------------------------------------------------------

    async def start(self, container_id: str, exec_id: str) -> None:
        """Start a created container, or an exec. Raises NotFoundError, StateError, SandboxError, RpcError."""
        await finish(self._start(self.process(container_id, exec_id)))

    async def _start(self, process: Process) -> None:
        async with process.turn:
            process.check(Event.START)
            if process.exec_id:
                await self._start_exec(process)
            else:
                await self._sandbox.check_network(f"start {process.what}")
                with self._sandbox.asked_to(f"start {process.what}") as guest:
                    await guest.start_container(process.container_id)
            process.apply(Event.START)
            self._events.started(process)
            if process.exec_id:
                self._exits.await_exit(process)
            if process.pending_size is not None:
                await self._sandbox.guest.resize_terminal(process, *process.pending_size)

    async def _start_exec(self, process: Process) -> None:
        container = self.container(process.container_id).init
        if container.state is not State.RUNNING:
            raise StateError(f"cannot start {process.what}: the container is {container.state.value}")
        try:
            process.stdio = await self._exec_in_guest(process)
        except BaseException:
            # containerd deletes the exec next: it must find it stopped.
            process.record_exit(KILLED)
            raise
        process.stdio.start(self._tasks)

    async def _exec_in_guest(self, process: Process) -> Stdio:
        files = await self._creation.open_files(process)
        try:
            with self._sandbox.asked_to(f"start {process.what}") as guest:
                return await guest.exec_process(process, files)
        except BaseException:
            files.close()
            raise

    def end_all(self, reason: str) -> None:
        """The sandbox has ended: so has every process in it, with a status that is not zero."""
        self._exits.end_all(reason)

    def oom(self, container_id: str) -> None:
        """The guest's kernel killed a process of this container for its memory limit."""
        if self._containers.find(container_id) is not None:
            self._events.out_of_memory(container_id)

    async def kill(self, container_id: str, exec_id: str, number: int, *, everyone: bool) -> None:
        """Send a signal to a process, or to all of a container.

        A guest that does not even take SIGKILL is ended with everything in it.

        Raises:
            NotFoundError: no such process, or it has exited: containerd reads that as done.
        """
        process = self.process(container_id, exec_id)
        if process.state in (State.STOPPED, State.DELETED) and not everyone:
            raise NotFoundError(f"cannot signal {process.what}: it has exited already")
        if exec_id and process.state is State.CREATED:
            raise StateError(f"cannot signal {process.what}: it has not been started")
        if not self._sandbox.running:
            raise NotFoundError(f"cannot signal {process.what}: {self._sandbox.description}")
        try:
            guest = self._sandbox.guest
            await guest.signal_process(process, number, everyone=everyone and not exec_id)
        except RpcError as error:
            if number != SIGKILL or error.code is not Code.DEADLINE_EXCEEDED:
                raise
            await self._sandbox.fail(f"the guest's agent did not deliver SIGKILL to {process.what} in time")

    async def pause(self, container_id: str) -> None:
        """Freeze the processes of a container."""
        await finish(self._pause(self.process(container_id, "")))

    async def _pause(self, process: Process) -> None:
        async with process.turn:
            process.check(Event.PAUSE)
            await self._sandbox.guest.pause_container(process.container_id)
            process.apply(Event.PAUSE)
            self._events.paused(process.container_id)

    async def resume(self, container_id: str) -> None:
        """Let the processes of a paused container run again."""
        await finish(self._resume(self.process(container_id, "")))

    async def _resume(self, process: Process) -> None:
        async with process.turn:
            process.check(Event.RESUME)
            await self._sandbox.guest.resume_container(process.container_id)
            process.apply(Event.RESUME)
            self._events.resumed(process.container_id)

    async def resize(self, container_id: str, exec_id: str, columns: int, rows: int) -> None:
        """Set the size of a process's terminal; before its start the size is kept for it."""
        process = self.process(container_id, exec_id)
        if not process.paths.terminal:
            raise StateError(f"cannot resize the terminal of {process.what}: it was created without one")
        if process.state is State.CREATED:
            process.pending_size = (columns, rows)
        elif process.state is State.RUNNING:
            await self._sandbox.guest.resize_terminal(process, columns, rows)

    def close_stdin(self, container_id: str, exec_id: str) -> None:
        """End a process's standard input, after what is already in its FIFO."""
        process = self.process(container_id, exec_id)
        if process.stdio is not None:
            process.stdio.close_stdin()

    async def update(self, container_id: str, resources: JsonObject) -> None:
        """Change the limits of a container; those of the virtual machine stay."""
        self.container(container_id)
        try:
            encoded = oci.resources_to_proto(resources)
        except oci.SpecError as error:
            raise InvalidRequestError(f"cannot update container {container_id}: {error}") from None
        await self._sandbox.guest.update_container(container_id, encoded)

    async def stats(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """Resource usage of a container as the guest counts it."""
        self.container(container_id)
        return await self._sandbox.guest.container_stats(container_id)

    # -- deleting ------------------------------------------------------------------------------------------

    async def delete(self, container_id: str, exec_id: str) -> Process:
        """Delete a stopped process; deleting the last container of a sandbox ends its machine.

        Raises:
            StateError: it is running.
        """
        process = self.process(container_id, exec_id)
        await finish(self._deletion.delete(process))
        return process
