"""The events of containerd's task API about the containers of one sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from kata_runtime.container.process import KILLED, Container, Exit, Process
from kata_runtime.containerd_api import events_pb2
from kata_runtime.pod.timestamps import timestamp

if TYPE_CHECKING:
    from kata_runtime.pod.sandbox import Sandbox


class TaskEvents:
    """Makes events and publishes them, in the order of the calls. Their pid is the pod's init."""

    def __init__(self, sandbox: Sandbox, publish: Callable[[Message], None]) -> None:
        self._sandbox = sandbox
        self._publish = publish

    def created(self, container: Container) -> None:
        """Publish that a container was created."""
        paths = container.init.paths
        self._publish(
            events_pb2.TaskCreate(
                container_id=container.id,
                bundle=container.bundle,
                io=events_pb2.TaskIO(
                    stdin=paths.stdin, stdout=paths.stdout, stderr=paths.stderr, terminal=paths.terminal
                ),
                pid=self._sandbox.pid,
            )
        )

    def exec_added(self, process: Process) -> None:
        """Publish that an exec was recorded."""
        self._publish(events_pb2.TaskExecAdded(container_id=process.container_id, exec_id=process.exec_id))

    def started(self, process: Process) -> None:
        """Publish that a container or an exec was started."""
        pid = self._sandbox.pid
        if process.exec_id:
            self._publish(
                events_pb2.TaskExecStarted(
                    container_id=process.container_id, exec_id=process.exec_id, pid=pid
                )
            )
        else:
            self._publish(events_pb2.TaskStart(container_id=process.container_id, pid=pid))

    def paused(self, container_id: str) -> None:
        """Publish that a container was paused."""
        self._publish(events_pb2.TaskPaused(container_id=container_id))

    def resumed(self, container_id: str) -> None:
        """Publish that a container was resumed."""
        self._publish(events_pb2.TaskResumed(container_id=container_id))

    def out_of_memory(self, container_id: str) -> None:
        """Publish that the guest's kernel killed a process of a container for its memory limit."""
        self._publish(events_pb2.TaskOOM(container_id=container_id))

    def exited(self, process: Process, end: Exit) -> None:
        """Publish that a process has exited."""
        self._publish(
            events_pb2.TaskExit(
                container_id=process.container_id,
                id=process.guest_id,
                pid=self._sandbox.pid,
                exit_status=end.status,
                exited_at=timestamp(end.at),
            )
        )

    def deleted(self, container: Container) -> None:
        """Publish that a container was deleted."""
        end = container.init.exit or Exit(KILLED, 0)
        self._publish(
            events_pb2.TaskDelete(
                container_id=container.id,
                pid=self._sandbox.pid,
                exit_status=end.status,
                exited_at=timestamp(end.at),
            )
        )
