"""containerd.task.v2.Task and v3: requests in, `Tasks` asked, answers out."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from kata_agent.ttrpc.server import Handler
from kata_agent.ttrpc.service import service_of
from kata_runtime.container.process import KILLED, Process
from kata_runtime.container.states import State
from kata_runtime.containerd_api import runtimeoptions_pb2, task_pb2, task_types_pb2
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.pod.creation import CreateRequest
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.tasks import Tasks
from kata_runtime.pod.timestamps import timestamp
from kata_runtime.resource.shares import RootfsMount
from kata_runtime.shim import metrics
from kata_runtime.stdio.files import StdioPaths
from kata_runtime.version import VERSION

WithExit = TypeVar("WithExit", task_pb2.DeleteResponse, task_pb2.WaitResponse)

_STATUS = {
    State.CREATED: task_types_pb2.CREATED,
    State.RUNNING: task_types_pb2.RUNNING,
    State.PAUSED: task_types_pb2.PAUSED,
    State.STOPPED: task_types_pb2.STOPPED,
    State.DELETED: task_types_pb2.STOPPED,
}


class TaskService:
    """The task service of one sandbox. `shutdown` is called when containerd needs the shim no more."""

    def __init__(
        self,
        tasks: Tasks,
        sandbox: Sandbox,
        shutdown: Callable[[], Awaitable[None]],
        default_config_path: str | None,
    ) -> None:
        self._tasks = tasks
        self._sandbox = sandbox
        self._shutdown = shutdown
        self._default_config_path = default_config_path

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """The methods under both names of the service."""
        described = service_of(task_pb2.DESCRIPTOR.services_by_name["Task"])
        functions: Mapping[str, Callable[[Any], Any]] = {
            "State": self.state,
            "Create": self.create,
            "Start": self.start,
            "Delete": self.delete,
            "Pids": self.pids,
            "Pause": self.pause,
            "Resume": self.resume,
            "Checkpoint": self.checkpoint,
            "Kill": self.kill,
            "Exec": self.exec,
            "ResizePty": self.resize_pty,
            "CloseIO": self.close_io,
            "Update": self.update,
            "Wait": self.wait,
            "Stats": self.stats,
            "Connect": self.connect,
            "Shutdown": self.shutdown,
        }
        return {
            (name, method): Handler(described.methods[method].request, function)
            for name in ("containerd.task.v2.Task", "containerd.task.v3.Task")
            for method, function in functions.items()
        }

    async def create(self, request: task_pb2.CreateTaskRequest) -> task_pb2.CreateTaskResponse:
        """Create a container; the first one boots the sandbox."""
        if request.checkpoint:
            raise UnsupportedError(
                f"cannot create container {request.id} from a checkpoint: this runtime has none"
            )
        paths = StdioPaths(request.stdin, request.stdout, request.stderr, request.terminal)
        mounts = tuple(
            RootfsMount(mount.type, mount.source, tuple(mount.options)) for mount in request.rootfs
        )
        config_path = config_path_of(request.options) or self._default_config_path
        await self._tasks.create(CreateRequest(request.id, request.bundle, mounts, paths, config_path))
        return task_pb2.CreateTaskResponse(pid=self._sandbox.pid)

    async def start(self, request: task_pb2.StartRequest) -> task_pb2.StartResponse:
        """Start a container or an exec."""
        await self._tasks.start(request.id, request.exec_id)
        return task_pb2.StartResponse(pid=self._sandbox.pid)

    async def state(self, request: task_pb2.StateRequest) -> task_pb2.StateResponse:
        """The state of a container or an exec."""
        container, process = self._tasks.known(request.id, request.exec_id)
        response = task_pb2.StateResponse(
            id=request.id,
            bundle=container.bundle,
            pid=self._sandbox.pid,
            status=_STATUS[process.state],
            stdin=process.paths.stdin,
            stdout=process.paths.stdout,
            stderr=process.paths.stderr,
            terminal=process.paths.terminal,
            exec_id=process.exec_id,
        )
        if process.exit is not None:
            response.exit_status = process.exit.status
            response.exited_at.CopyFrom(timestamp(process.exit.at))
        return response

    async def delete(self, request: task_pb2.DeleteRequest) -> task_pb2.DeleteResponse:
        """Delete a stopped container or exec."""
        pid = self._sandbox.pid
        process = await self._tasks.delete(request.id, request.exec_id)
        return _with_exit(task_pb2.DeleteResponse(pid=pid), process)

    async def wait(self, request: task_pb2.WaitRequest) -> task_pb2.WaitResponse:
        """Answer when a container or an exec has exited."""
        process = await self._tasks.wait(request.id, request.exec_id)
        return _with_exit(task_pb2.WaitResponse(), process)

    async def kill(self, request: task_pb2.KillRequest) -> Empty:
        """Send a signal."""
        await self._tasks.kill(request.id, request.exec_id, request.signal, everyone=request.all)
        return Empty()

    async def exec(self, request: task_pb2.ExecProcessRequest) -> Empty:
        """Record an exec, to be started by Start."""
        paths = StdioPaths(request.stdin, request.stdout, request.stderr, request.terminal)
        spec = _json(request.spec.value, f"the process of exec {request.exec_id}")
        await self._tasks.exec(request.id, request.exec_id, spec, paths)
        return Empty()

    async def pids(self, request: task_pb2.PidsRequest) -> task_pb2.PidsResponse:
        """The process of the container that the host can see: the VMM, and without one the pod's init.

        None while there is neither.
        """
        self._tasks.known(request.id, "")
        pid = self._sandbox.vmm_pid or self._sandbox.pid
        return task_pb2.PidsResponse(processes=[task_types_pb2.ProcessInfo(pid=pid)] if pid else [])

    async def pause(self, request: task_pb2.PauseRequest) -> Empty:
        """Freeze a container."""
        await self._tasks.pause(request.id)
        return Empty()

    async def resume(self, request: task_pb2.ResumeRequest) -> Empty:
        """Thaw a container."""
        await self._tasks.resume(request.id)
        return Empty()

    async def checkpoint(self, request: task_pb2.CheckpointTaskRequest) -> Empty:
        """Not supported: a container's state is part of its guest's."""
        raise UnsupportedError(
            f"cannot checkpoint container {request.id}: its state is part of its virtual machine's"
        )

    async def resize_pty(self, request: task_pb2.ResizePtyRequest) -> Empty:
        """Set the size of a terminal."""
        await self._tasks.resize(request.id, request.exec_id, request.width, request.height)
        return Empty()

    async def close_io(self, request: task_pb2.CloseIORequest) -> Empty:
        """End a process's standard input."""
        if request.stdin:
            self._tasks.close_stdin(request.id, request.exec_id)
        return Empty()

    async def update(self, request: task_pb2.UpdateTaskRequest) -> Empty:
        """Change a container's limits."""
        resources = _json(request.resources.value, f"the resources of container {request.id}")
        if not isinstance(resources, dict):
            raise InvalidRequestError(f"the resources of container {request.id} must be an object")
        await self._tasks.update(request.id, resources)
        return Empty()

    async def stats(self, request: task_pb2.StatsRequest) -> task_pb2.StatsResponse:
        """A container's metrics."""
        found = metrics.to_metrics(await self._tasks.stats(request.id))
        return task_pb2.StatsResponse(stats=metrics.encode(found))

    async def connect(self, request: task_pb2.ConnectRequest) -> task_pb2.ConnectResponse:
        """Who serves the container; containerd asks after its own restart."""
        self._tasks.known(request.id, "")
        return task_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=self._sandbox.pid, version=VERSION)

    async def shutdown(self, request: task_pb2.ShutdownRequest) -> Empty:
        """End the shim, unless containers are left (and `now` is not asked for)."""
        if request.now:
            self._tasks.end_all("containerd shut the shim down")
        elif not self._tasks.empty or self._sandbox.outlives_containers:
            return Empty()
        await self._shutdown()
        return Empty()


def config_path_of(options: Any) -> str | None:
    """The configuration file that containerd's runtime options name.

    options: Any(runtimeoptions.v1.Options), or of another type, which is then not for us.

    Raises:
        InvalidRequestError: it is typed as runtime options, and is not.
    """
    if "runtimeoptions" not in options.type_url:
        return None
    try:
        parsed = runtimeoptions_pb2.Options.FromString(options.value)
    except DecodeError:
        raise InvalidRequestError(
            "cannot decode the runtime options: check ConfigPath in containerd's configuration"
        ) from None
    return parsed.config_path or None


def _json(raw: bytes, what: str) -> object:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise InvalidRequestError(f"{what} is not JSON: {error}") from None


def _with_exit(response: WithExit, process: Process) -> WithExit:
    if process.exit is None:
        response.exit_status = KILLED
    else:
        response.exit_status = process.exit.status
        response.exited_at.CopyFrom(timestamp(process.exit.at))
    return response
