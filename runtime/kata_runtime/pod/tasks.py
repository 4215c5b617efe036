"""What containerd can ask of the containers of one sandbox, in terms of containers and processes.

State, Wait, Pids and Delete are answered from memory in every state, also while a container is being
created and after the guest has died; only what needs the guest asks the guest, always with a deadline.

What changes a process here and in the guest is finished once it has begun: a caller that goes away, such as a
containerd that is restarted, must not leave it half done.
"""

from __future__ import annotations

import logging
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
    RuntimeRoomError,
    StateError,
)
from kata_runtime.identity import check_id
from kata_runtime.pod.containers import Containers
from kata_runtime.pod.creation import CreateRequest, Creation
from kata_runtime.pod.deletion import Deletion
from kata_runtime.pod.exits import Exits
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.states import State as SandboxState
from kata_runtime.pod.task_events import TaskEvents
from kata_runtime.stdio.files import StdioPaths
from kata_runtime.stdio.pumps import Stdio

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker

_log = logging.getLogger(__name__)

SIGKILL = 9
_FATAL = (SIGKILL, 1, 2, 3, 15)
"""Signals that end a process which has no handler for them and is asked to end: also HUP, INT, QUIT, TERM."""


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
        self._first = ""
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

    def known(self, container_id: str, exec_id: str) -> tuple[Container, Process]:
        """A container and a process of it; of one that is being created, what is known. As `process`."""
        if not exec_id and (coming := self._containers.coming(container_id)) is not None:
            return coming.container, coming.container.init
        return self.container(container_id), self.process(container_id, exec_id)

    async def wait(self, container_id: str, exec_id: str) -> Process:
        """Return a process once it has exited, or will never run. Raises NotFoundError, StateError."""
        _, process = self.known(container_id, exec_id)
        if (found := await self._created(container_id)) is not None:
            process = found
        await process.wait()
        return process

    async def _created(self, container_id: str) -> Process | None:
        """Wait until a container that is being created is, or is not; nothing for any other.

        One that is not has exited.
        """
        if (coming := self._containers.coming(container_id)) is None:
            return None
        await coming.over.wait()
        if (created := self._containers.find(container_id)) is not None:
            return created.init
        coming.container.init.record_exit(KILLED)
        return coming.container.init

    async def _give_up(self, container_id: str, reason: str) -> Process | None:
        """End the creation of a container, the boot of its machine too; nothing when none is under way.

        Returns its process, which has exited if the creation did not come to its end before.
        """
        if (coming := self._containers.coming(container_id)) is None:
            return None
        if self._sandbox.state is SandboxState.BOOTING:
            await self._sandbox.fail(reason)
        else:
            coming.give_up(reason)
        return await self._created(container_id)

    # -- creating ------------------------------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> Container:
        """Create a container; the first one of a sandbox boots the virtual machine.

        Raises:
            AlreadyExistsError, StateError, InvalidRequestError, UnsupportedError, SandboxError: with nothing
                left behind.
        """
        check_id(request.id, "container id")
        init = Process(request.id, "", request.stdio, {})
        with self._containers.claim(Container(request.id, request.bundle, {}, init)):
            container = await self._creation.create(request)
            self._containers.add(container)
        self._first = self._first or container.id
        self._events.created(container)
        if not self._creation.is_waiting(container):
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
        await self._run(process)
        if not process.exec_id and process.container_id == self._first:
            await self._sandbox.run_hooks("poststart")

    async def _run(self, process: Process) -> None:
        async with process.turn:
            process.check(Event.START)
            size = None if process.exec_id else process.pending_size
            if process.exec_id:
                await self._start_exec(process)
            else:
                await self._start_container(process)
            process.apply(Event.START)
            self._events.started(process)
            if process.exec_id:
                self._exits.await_exit(process)
            if process.pending_size != size:  # an agent may not know an exec's own; or asked for meanwhile
                await self._set_size(process)

    async def _set_size(self, process: Process) -> None:
        """Give a terminal the size that was asked for too early; its process may have exited."""
        if process.pending_size is None:
            return
        try:
            await self._sandbox.guest.resize_terminal(process, *process.pending_size)
        except (RpcError, RuntimeRoomError) as error:
            _log.warning("cannot set the terminal size of %s: %s", process.what, error)

    async def _start_container(self, process: Process) -> None:
        container = self.container(process.container_id)
        if self._creation.is_waiting(container):
            await self._complete(container)
        else:
            await self._sandbox.check_network(f"start {process.what}")
        await self._set_size(process)  # its program may ask for it with its first call
        async with self._sandbox.asked_to(f"start {process.what}") as guest:
            await guest.start_container(process.container_id)

    async def _complete(self, container: Container) -> None:
        """Boot the machine that waited for its network; when that fails, the container has exited."""
        try:
            await self._creation.complete(container)
        except BaseException:
            self._exits.record(container.init, KILLED)
            raise
        self._exits.await_exit(container.init)

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
            async with self._sandbox.asked_to(f"start {process.what}") as guest:
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
        if number in _FATAL and not exec_id:
            reason = f"container {container_id} got signal {number} while it was created"
            given_up = await self._give_up(container_id, reason)
            if given_up is not None and given_up.exit is not None:
                return
        process = self.process(container_id, exec_id)
        if process.state in (State.STOPPED, State.DELETED) and not everyone:
            raise NotFoundError(f"cannot signal {process.what}: it has exited already")
        if exec_id and process.state is State.CREATED:
            raise StateError(f"cannot signal {process.what}: it has not been started")
        if self._creation.is_waiting(self.container(container_id)) and not exec_id:
            self._kill_waiting(process, number)
            return
        if self._sandbox.state is SandboxState.BOOTING and number in _FATAL:
            await self._sandbox.fail(f"{process.what} got signal {number} while its machine booted")
            return
        if not self._sandbox.running:
            raise NotFoundError(f"cannot signal {process.what}: {self._sandbox.description}")
        try:
            guest = self._sandbox.guest
            await guest.signal_process(process, number, everyone=everyone and not exec_id)
        except RpcError as error:
            if error.code is Code.UNAVAILABLE:  # the guest is dead, and everything in it is
                why = self._sandbox.description if await self._sandbox.has_hung_up() else str(error)
                raise NotFoundError(f"cannot signal {process.what}: its guest has ended: {why}") from error
            if number != SIGKILL or error.code is not Code.DEADLINE_EXCEEDED:
                raise
            await self._sandbox.fail(f"the guest's agent did not deliver SIGKILL to {process.what} in time")

    def _kill_waiting(self, process: Process, number: int) -> None:
        """A container without a machine: there is nobody to take a signal, but it can be over."""
        if number not in _FATAL:
            raise StateError(f"cannot signal {process.what}: it has not been started")
        self._exits.record(process, 128 + number)

    async def pause(self, container_id: str) -> None:
        """Freeze the processes of a container."""
        await finish(self._pause(self.process(container_id, "")))

    async def _pause(self, process: Process) -> None:
        async with process.turn:
            process.check(Event.PAUSE)
            async with self._sandbox.asked_to(f"pause {process.what}") as guest:
                await guest.pause_container(process.container_id)
            process.apply(Event.PAUSE)
            self._events.paused(process.container_id)

    async def resume(self, container_id: str) -> None:
        """Let the processes of a paused container run again."""
        await finish(self._resume(self.process(container_id, "")))

    async def _resume(self, process: Process) -> None:
        async with process.turn:
            process.check(Event.RESUME)
            async with self._sandbox.asked_to(f"resume {process.what}") as guest:
                await guest.resume_container(process.container_id)
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
            async with self._sandbox.asked_to(f"resize the terminal of {process.what}") as guest:
                await guest.resize_terminal(process, columns, rows)

    def close_stdin(self, container_id: str, exec_id: str) -> None:
        """End a process's standard input, after what is already in its FIFO."""
        process = self.process(container_id, exec_id)
        if process.stdio is not None:
            process.stdio.close_stdin()

    async def update(self, container_id: str, resources: JsonObject) -> None:
        """Change the limits of a container, and the size of its machine where that grows."""
        container = self.container(container_id)
        try:
            oci.resources_to_proto(resources)
        except oci.SpecError as error:
            raise InvalidRequestError(f"cannot update container {container_id}: {error}") from None
        await finish(self._update(container, resources))

    async def _update(self, container: Container, resources: JsonObject) -> None:
        async with self._sandbox.asked_to(f"update container {container.id}") as guest:
            await guest.update_container(container, resources)

    async def stats(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """Resource usage of a container as the guest counts it."""
        self.container(container_id)
        async with self._sandbox.asked_to(f"measure container {container_id}") as guest:
            return await guest.container_stats(container_id)

    async def all_stats(self) -> list[agent_pb2.StatsContainerResponse]:
        """Resource usage of each container that the guest has, in the order of their creation."""
        there = [
            one.id for one in self._containers.all if one.init.exit is None and one.init.stdio is not None
        ]
        async with self._sandbox.asked_to("measure the sandbox") as guest:
            return [await guest.container_stats(container_id) for container_id in there]

    # -- deleting ------------------------------------------------------------------------------------------

    async def delete(self, container_id: str, exec_id: str) -> Process:
        """Delete a stopped process; deleting the last container of a sandbox ends its machine.

        Raises:
            StateError: it is running.
        """
        if not exec_id:
            reason = f"container {container_id} was deleted while its machine booted"
            given_up = await self._give_up(container_id, reason)
            if given_up is not None and given_up.exit is not None:
                return given_up
            if self._sandbox.state is SandboxState.BOOTING and self._containers.find(container_id):
                await self._sandbox.fail(reason)
        process = self.process(container_id, exec_id)
        await finish(self._deletion.delete(process))
        return process
