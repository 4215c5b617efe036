"""What containerd can ask of the containers of one sandbox, in terms of containers and processes.

State, Wait, Pids and Delete are answered from memory in every state, also while a container is being
created and after the guest has died; only what needs the guest asks the guest, always with a deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio
import anyio.abc
from google.protobuf.message import Message

from kata_agent import oci
from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.container import bundle as oci_bundle
from kata_runtime.container import guest_spec
from kata_runtime.container.bundle import JsonObject
from kata_runtime.container.process import KILLED, Container, Process
from kata_runtime.container.states import Event, State
from kata_runtime.containerd_api import events_pb2
from kata_runtime.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    SandboxError,
    StateError,
)
from kata_runtime.identity import check_id
from kata_runtime.pod import streams
from kata_runtime.pod.creation import CreateRequest, Creation
from kata_runtime.pod.sandbox import Sandbox, in_the_guest
from kata_runtime.pod.timestamps import timestamp
from kata_runtime.stdio.pumps import StdioPaths

_log = logging.getLogger(__name__)

SIGKILL = 9
# Seconds that the agent may take to pass a signal on.
KILL_BUDGET = 10.0


class Tasks:
    """The containers of one sandbox."""

    def __init__(
        self, sandbox: Sandbox, tasks: anyio.abc.TaskGroup, publish: Callable[[Message], None]
    ) -> None:
        self._sandbox = sandbox
        self._tasks = tasks
        self._publish = publish
        self._creation = Creation(sandbox, tasks)
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()

    # -- looking up ----------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether there is no container, and none under way."""
        return not self._containers and not self._creating

    def container(self, container_id: str) -> Container:
        """A container by its id. Raises NotFoundError."""
        try:
            return self._containers[container_id]
        except KeyError:
            if container_id in self._creating:
                raise StateError(f"container {container_id} is still being created") from None
            raise NotFoundError(
                f"no container {container_id!r} in sandbox {self._sandbox.identity.id}"
            ) from None

    def process(self, container_id: str, exec_id: str) -> Process:
        """The init process, or an exec. Raises NotFoundError."""
        container = self.container(container_id)
        if not exec_id:
            return container.init
        try:
            return container.execs[exec_id]
        except KeyError:
            raise NotFoundError(f"no exec {exec_id!r} in container {container_id}") from None

    # -- creating ------------------------------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> Container:
        """Create a container; the first one of a sandbox boots the virtual machine.

        Raises:
            AlreadyExistsError, InvalidRequestError, UnsupportedError, SandboxError: with nothing left behind.
        """
        check_id(request.id, "container id")
        if request.id in self._containers or request.id in self._creating:
            raise AlreadyExistsError(f"container {request.id} exists already")
        self._creating.add(request.id)
        try:
            container = await self._creation.create(request)
        finally:
            self._creating.discard(request.id)
        self._containers[request.id] = container
        self._publish(
            events_pb2.TaskCreate(
                container_id=request.id,
                bundle=request.bundle,
                io=events_pb2.TaskIO(
                    stdin=request.stdio.stdin,
                    stdout=request.stdio.stdout,
                    stderr=request.stdio.stderr,
                    terminal=request.stdio.terminal,
                ),
                pid=self._sandbox.vmm_pid,
            )
        )
        self._tasks.start_soon(self._watch_process, container.init)
        return container

    # -- running -------------------------------------------------------------------------------------------

    async def start(self, container_id: str, exec_id: str) -> None:
        """Start a created container, or an exec. Raises NotFoundError, StateError, SandboxError, RpcError."""
        process = self.process(container_id, exec_id)
        # A caller that goes away, such as a containerd that is restarted, must not leave it half started.
        with anyio.CancelScope(shield=True):
            await self._start(process)
        if exec_id:
            self._tasks.start_soon(self._watch_process, process)

    async def _start(self, process: Process) -> None:
        async with process.turn:
            process.check(Event.START)
            if process.exec_id:
                await self._start_exec(process)
            else:
                request = agent_pb2.StartContainerRequest(container_id=process.container_id)
                with in_the_guest(self._sandbox, f"start {process.what}"):
                    await self._sandbox.agent.start_container(request)
            process.apply(Event.START)
            if process.pending_size is not None:
                await self._resize(process, *process.pending_size)
            self._publish_start(process)

    async def _start_exec(self, process: Process) -> None:
        container = self.container(process.container_id).init
        if container.state is not State.RUNNING:
            raise StateError(f"cannot start {process.what}: the container is {container.state.value}")
        try:
            ports = await streams.connect(
                self._sandbox, process, await streams.open_files(self._sandbox, process)
            )
            request = agent_pb2.ExecProcessRequest(
                container_id=process.container_id,
                exec_id=process.exec_id,
                process=oci.process_to_proto(guest_spec.amend_process(dict(process.spec))),
                stdin_port=ports.get("stdin", 0),
                stdout_port=ports.get("stdout", 0),
                stderr_port=ports.get("stderr", 0),
            )
            with in_the_guest(self._sandbox, f"start {process.what}"):
                await self._sandbox.agent.exec_process(request)
            assert process.stdio is not None
            process.stdio.start(self._tasks)
        except BaseException:
            if process.stdio is not None:
                process.stdio.close()
            # containerd deletes the exec next: it must find it stopped.
            process.end(KILLED)
            raise

    def _publish_start(self, process: Process) -> None:
        if process.exec_id:
            started = events_pb2.TaskExecStarted(
                container_id=process.container_id, exec_id=process.exec_id, pid=self._sandbox.vmm_pid
            )
            self._publish(started)
        else:
            self._publish(events_pb2.TaskStart(container_id=process.container_id, pid=self._sandbox.vmm_pid))

    async def exec(self, container_id: str, exec_id: str, spec: object, paths: StdioPaths) -> None:
        """Record an exec; `start` runs it. Raises AlreadyExistsError, NotFoundError, InvalidRequestError."""
        container = self.container(container_id)
        check_id(exec_id, "exec id")
        if exec_id in container.execs or exec_id == container_id:
            raise AlreadyExistsError(f"exec {exec_id} exists already in container {container_id}")
        if container.init.state in (State.STOPPED, State.DELETED):
            raise StateError(f"cannot exec in container {container_id}: it is {container.init.state.value}")
        checked = oci_bundle.check_process(spec, f"exec {exec_id}")
        try:
            oci.process_to_proto(checked)
        except oci.SpecError as error:
            raise InvalidRequestError(f"exec {exec_id}: {error}") from None
        container.execs[exec_id] = Process(container_id, exec_id, paths, checked)
        self._publish(events_pb2.TaskExecAdded(container_id=container_id, exec_id=exec_id))

    async def _watch_process(self, process: Process) -> None:
        """Wait for the end of a process in the guest and make it known."""
        request = agent_pb2.WaitProcessRequest(container_id=process.container_id, exec_id=process.guest_id)
        try:
            status = (await self._sandbox.agent.wait_process(request)).status
        except (RpcError, SandboxError) as error:
            if process.exit is not None:
                return
            # When the sandbox has ended, `end_all` tells so with its reason; wait for it.
            with anyio.move_on_after(10):
                await process.wait()
                return
            _log.error("lost sight of %s: %s", process.what, error)
            status = KILLED
        if process.stdio is not None:
            await process.stdio.deliver()
        async with process.turn:
            self._end(process, status & 0xFF if status >= 0 else KILLED)

    def _end(self, process: Process, status: int) -> None:
        """Record the end of a process, of its container's execs before it, and publish it, once."""
        if not process.exec_id and process.state is not State.STOPPED:
            container = self._containers.get(process.container_id)
            for started in list(container.execs.values()) if container else ():
                if started.state in (State.RUNNING, State.PAUSED):
                    self._end(started, KILLED)
        if not process.end(status):
            return
        if process.stdio is not None:
            self._tasks.start_soon(process.stdio.finish)
        assert process.exit is not None
        self._publish(
            events_pb2.TaskExit(
                container_id=process.container_id,
                id=process.exec_id or process.container_id,
                pid=self._sandbox.vmm_pid,
                exit_status=process.exit.status,
                exited_at=timestamp(process.exit.at),
            )
        )

    def end_all(self, reason: str) -> None:
        """The sandbox has ended: so has every process in it, with a status that is not zero."""
        for container in self._containers.values():
            if container.init.state is not State.STOPPED and container.init.stdio is not None:
                container.init.stdio.notice(f"kata: container {container.id} was ended: {reason}\n")
            self._end(container.init, KILLED)

    def oom(self, container_id: str) -> None:
        """The guest's kernel killed a process of this container for its memory limit."""
        if container_id in self._containers:
            self._publish(events_pb2.TaskOOM(container_id=container_id))

    async def kill(self, container_id: str, exec_id: str, number: int, *, everyone: bool) -> None:
        """Send a signal to a process, or to all of a container.

        A guest that does not even take SIGKILL is ended with everything in it.

        Raises:
            NotFoundError: no such process, or it has ended: containerd reads that as done.
        """
        process = self.process(container_id, exec_id)
        if process.state in (State.STOPPED, State.DELETED) and not everyone:
            raise NotFoundError(f"cannot signal {process.what}: it has already ended")
        if exec_id and process.state is State.CREATED:
            raise StateError(f"cannot signal {process.what}: it has not been started")
        if not self._sandbox.running:
            raise NotFoundError(f"cannot signal {process.what}: its sandbox has ended: {self._sandbox.ended}")
        target = "" if everyone and not exec_id else process.guest_id
        request = agent_pb2.SignalProcessRequest(container_id=container_id, exec_id=target, signal=number)
        try:
            await self._sandbox.agent.signal_process(request, timeout=KILL_BUDGET)
        except RpcError as error:
            if number != SIGKILL or error.code is not Code.DEADLINE_EXCEEDED:
                raise
            await self._sandbox.fail(f"the guest's agent did not take SIGKILL for {process.what}")

    async def delete(self, container_id: str, exec_id: str) -> Process:
        """Delete a stopped process; deleting the last container of a sandbox ends its machine.

        Raises:
            StateError: it is running.
        """
        process = self.process(container_id, exec_id)
        async with process.turn:
            waiting = process.state is State.CREATED and not exec_id
            if waiting:
                # Created, never started: its process waits in the guest, and goes with its container.
                self._end(process, KILLED)
            process.check(Event.DELETE)
            if process.stdio is not None:
                if not waiting:
                    await process.stdio.finish()
                process.stdio.close()
            if exec_id:
                self.container(container_id).execs.pop(exec_id, None)
            else:
                await self._delete_container(self.container(container_id))
            process.apply(Event.DELETE)
        return process

    async def _delete_container(self, container: Container) -> None:
        with anyio.CancelScope(shield=True):
            if self._sandbox.running:
                request = agent_pb2.RemoveContainerRequest(container_id=container.id)
                try:
                    await self._sandbox.agent.remove_container(request)
                except (RpcError, SandboxError) as error:
                    _log.warning("the guest could not remove container %s: %s", container.id, error)
            if container.id == self._sandbox.identity.id:
                # containerd takes the shim for dead after this, whatever else is in the pod.
                self.end_all(f"its pod ended: the sandbox's container {container.id} was deleted")
                await self._sandbox.stop()
            elif len(self._containers) == 1 and not self._creating and not self._sandbox.lasting:
                await self._sandbox.stop()
            await self._creation.take_away(container)
            self._containers.pop(container.id, None)
        status = container.init.exit.status if container.init.exit else KILLED
        at = container.init.exit.at if container.init.exit else 0
        self._publish(
            events_pb2.TaskDelete(
                container_id=container.id,
                pid=self._sandbox.vmm_pid,
                exit_status=status,
                exited_at=timestamp(at),
            )
        )

    # -- while running -------------------------------------------------------------------------------------

    async def pause(self, container_id: str) -> None:
        """Freeze the processes of a container."""
        process = self.process(container_id, "")
        async with process.turn:
            process.check(Event.PAUSE)
            await self._sandbox.agent.pause_container(
                agent_pb2.PauseContainerRequest(container_id=container_id)
            )
            process.apply(Event.PAUSE)
            self._publish(events_pb2.TaskPaused(container_id=container_id))

    async def resume(self, container_id: str) -> None:
        """Let the processes of a paused container run again."""
        process = self.process(container_id, "")
        async with process.turn:
            process.check(Event.RESUME)
            await self._sandbox.agent.resume_container(
                agent_pb2.ResumeContainerRequest(container_id=container_id)
            )
            process.apply(Event.RESUME)
            self._publish(events_pb2.TaskResumed(container_id=container_id))

    async def resize(self, container_id: str, exec_id: str, columns: int, rows: int) -> None:
        """Set the size of a process's terminal; before its start the size is kept for it."""
        process = self.process(container_id, exec_id)
        if not process.paths.terminal:
            raise StateError(f"cannot resize the terminal of {process.what}: it has none")
        if process.state is State.CREATED:
            process.pending_size = (columns, rows)
        elif process.state is State.RUNNING:
            await self._resize(process, columns, rows)

    async def _resize(self, process: Process, columns: int, rows: int) -> None:
        await self._sandbox.agent.tty_win_resize(
            agent_pb2.TtyWinResizeRequest(
                container_id=process.container_id, exec_id=process.guest_id, row=rows, column=columns
            ),
        )

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
            raise InvalidRequestError(f"update of container {container_id}: {error}") from None
        request = agent_pb2.UpdateContainerRequest(container_id=container_id, resources=encoded)
        await self._sandbox.agent.update_container(request)

    async def stats(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """Resource usage of a container as the guest counts it."""
        self.container(container_id)
        request = agent_pb2.StatsContainerRequest(container_id=container_id)
        return await self._sandbox.agent.stats_container(request)
