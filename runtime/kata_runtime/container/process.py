"""A process of a container as this side of the VM knows it: state, streams, exit."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio

from kata_agent.protos.agent_pb2 import Storage
from kata_runtime.block_nodes import BlockNode
from kata_runtime.container.assigned_disk import AssignedDisk
from kata_runtime.container.bundle import JsonObject
from kata_runtime.container.states import Event, State, after
from kata_runtime.stdio.files import StdioPaths
from kata_runtime.stdio.pumps import Stdio

KILLED = 128 + 9


class Exit(NamedTuple):
    """The exit of a process. status: 0 to 255, 128 + n after signal n. at: nanoseconds since the epoch."""

    status: int
    at: int


class Process:
    """The init process of a container (exec_id is empty) or an exec."""

    def __init__(self, container_id: str, exec_id: str, paths: StdioPaths, spec: JsonObject) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.paths = paths
        self.spec = spec
        self.state = State.CREATED
        self.exit: Exit | None = None
        self.stdio: Stdio | None = None
        # Terminal size (columns, rows) asked for before the process was started.
        self.pending_size: tuple[int, int] | None = None
        # Held while an operation is under way whose event must come before the exit's.
        self.turn = anyio.Lock()
        self._exited = anyio.Event()

    @property
    def guest_id(self) -> str:
        """The exec id by which the agent knows it: init has its container's id."""
        return self.exec_id or self.container_id

    @property
    def what(self) -> str:
        """Its name for messages."""
        return (
            f"exec {self.exec_id} of container {self.container_id}"
            if self.exec_id
            else f"container {self.container_id}"
        )

    def apply(self, event: Event) -> None:
        """Move to the state after an event. Raises StateError or NotFoundError as the table says."""
        self.state = after(self.state, event, self.what)

    def check(self, event: Event) -> None:
        """Raise as `apply` would, and change nothing."""
        after(self.state, event, self.what)

    def record_exit(self, status: int) -> Exit | None:
        """Record that it has exited; None when that was recorded before."""
        if self.state in (State.STOPPED, State.DELETED):
            return None
        self.apply(Event.EXIT)
        self.exit = Exit(status, time.time_ns())
        self._exited.set()
        return self.exit

    async def wait(self) -> Exit:
        """Return once it has exited."""
        await self._exited.wait()
        assert self.exit is not None
        return self.exit


@dataclass
class Container:
    """A container: its bundle, its init process, its execs, and what was shared for it."""

    id: str
    bundle: str
    spec: JsonObject
    init: Process
    execs: dict[str, Process] = field(default_factory=dict)
    # Its directory below the shared one, and the mount points in there, in the order in which they were made.
    home: str = ""
    mounts: list[str] = field(default_factory=list)
    # Its volumes, each by the place that the broker answered.
    volumes: list[str] = field(default_factory=list)
    # What the guest mounts for it, where its files are not shared.
    storages: list[Storage] = field(default_factory=list)
    # Of the guest's memory, by the index in the specification's mounts; see resource/memory.py.
    memory: dict[int, Storage] = field(default_factory=dict)
    # The name of the disk that was plugged in for it, if one was.
    disk: str = ""
    # Block devices of the host that it is given, and those that were plugged in for it.
    nodes: list[BlockNode] = field(default_factory=list)
    plugged: list[str] = field(default_factory=list)
    # Volumes that are block devices of the host, which the guest mounts.
    assigned: list[AssignedDisk] = field(default_factory=list)

    @property
    def blocks(self) -> list[BlockNode | AssignedDisk]:
        """All block devices of the host that it is given."""
        return [*self.nodes, *self.assigned]

    @property
    def rootfs(self) -> str:
        """Where its root file system is mounted on the host while it is shared."""
        return os.path.join(self.home, "rootfs")

    @property
    def root(self) -> str:
        """Where its root file system is on the host, unless containerd gives mounts for it."""
        return os.path.join(self.bundle, self.spec["root"]["path"])

    @property
    def processes(self) -> list[Process]:
        """Init first."""
        return [self.init, *self.execs.values()]
