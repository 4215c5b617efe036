"""A `Host` without processes: its children are tasks of the test, and of QEMU there is the monitor only."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kata_hypervisor.errors import LaunchError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.qemu.command import MONITOR, STDERR
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.confinement import ThreadConfinement, inherited_filters

VERSION = b'{"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}'
GREETING = b'{"QMP": {"version": %s, "capabilities": []}}\n' % VERSION
OURS = inherited_filters() + 1
"""Filters of a QEMU before it puts on its own."""

CONFINED = [
    ThreadConfinement(tid, name, 2, OURS + 1, True) for tid, name in ((10, "qemu"), (11, "CPU 0/TCG"))
]
UNCONFINED = [ThreadConfinement(10, "qemu", 0, 0, False), ThreadConfinement(11, "CPU 0/TCG", 0, 0, False)]

Behaviour = Callable[["FakeChild"], Awaitable[None]]


class FakeChild:
    """A child that lives until its behaviour, or a signal, ends it.

    fds: its own copies of what it inherited. commands, arguments: what its monitor was asked, if
    it has one.
    """

    def __init__(self, name: str, pid: int, fds: Mapping[int, int]) -> None:
        self.name = name
        self.pid = pid
        self.exited: ExitStatus | None = None
        self.violation = ""
        self.loading = True
        self.fds = {number: os.dup(fd) for number, fd in fds.items()}
        self.commands: list[str] = []
        self.arguments: list[dict[str, Any]] = []
        self._ended = asyncio.Event()
        self._task: asyncio.Future[None] | None = None

    def run(self, behaviour: Behaviour) -> None:
        """Begin to behave."""
        self._task = asyncio.ensure_future(behaviour(self))

    def end(self, *, code: int | None = None, number: int | None = None, stderr: bytes = b"") -> None:
        """End: say a last word, and close every descriptor, as the kernel does."""
        if self.exited is not None:
            return
        if stderr:
            os.write(self.fds[STDERR], stderr)
        self.exited = ExitStatus(code=code, signal=number)
        for fd in self.fds.values():
            os.close(fd)
        self._ended.set()

    async def wait(self) -> ExitStatus:
        """See Child."""
        await self._ended.wait()
        assert self.exited is not None
        return self.exited

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """See Child."""
        self.end(number=number)

    async def aclose(self) -> None:
        """End the task; raise what went wrong in it."""
        self.end(number=signal.SIGKILL)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()


class FakeHost:
    """Starts fake children. behaviours: by name; an exception in its place is what `spawn` raises."""

    patience = 20.0

    user = 1_900_000_000

    def __init__(self, **behaviours: Behaviour | Exception) -> None:
        self.behaviours = behaviours
        self.children: dict[str, FakeChild] = {}
        self.argv: dict[str, Sequence[str]] = {}
        self.threads: list[ThreadConfinement] | Exception = CONFINED
        self.effective: bool | Exception = True
        self.guest: int | str | None = None
        self.given: list[tuple[Path, bool]] = []

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        fds: Mapping[int, int],
        environment: Mapping[str, str] | None = None,
        gate: int | None = None,
        seccomp: ChildFilter | None = None,
        privileges: Privileges | None = None,
    ) -> FakeChild:
        """See Host. QEMU waits by itself; it has a filter of ours, unless it is to be unconfined."""
        assert gate is None
        assert (seccomp is not None) == (name == "virtiofsd" or "-sandbox" in argv)
        behaviour = self.behaviours[name]
        await asyncio.sleep(0)
        if isinstance(behaviour, Exception):
            raise behaviour
        child = self.children[name] = FakeChild(name, 10, fds)
        self.argv[name] = argv
        child.run(behaviour)
        return child

    async def register_guest(self, address: int | str) -> None:
        """See Host."""
        self.guest = address

    async def hold_monitor(
        self,
        driver: str,
        monitor: socket.socket,
        *,
        saved_to: Path | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> socket.socket:
        """See Host. Nobody stands between."""
        return monitor

    async def connect_guest(self, port: int) -> socket.socket:
        """See Host."""
        raise OSError(errno.ENODEV, f"no guest behind {self.guest} answers on port {port}")

    async def confinement(self, child: Child) -> list[ThreadConfinement]:
        """See Host."""
        if child.name == "virtiofsd":
            if child.exited is not None:
                raise ProcessLookupError("virtiofsd has exited")
            return [ThreadConfinement(child.pid, child.name, 2, inherited_filters() + 2, True)]
        if isinstance(self.threads, Exception):
            raise self.threads
        return self.threads

    async def listen_for_vmm(self, path: Path) -> socket.socket:
        """See Host. QEMU makes no socket that has a name."""
        raise NotImplementedError(f"QEMU's driver asked for {path}")

    async def connect_vmm(self, path: Path) -> socket.socket:
        """See Host."""
        raise NotImplementedError(f"QEMU's driver asked for {path}")

    async def show_disk(self, name: str, path: Path, *, write: bool) -> Path:
        """See Host. QEMU takes no disk later."""
        raise NotImplementedError(f"QEMU's driver asked for {name}")

    async def give_device(self, path: Path, *, write: bool) -> None:
        """See Host. Nothing goes along: this QEMU opens nothing."""
        self.given.append((path, write))

    async def hide_disk(self, name: str) -> None:
        """See Host."""
        raise NotImplementedError(f"QEMU's driver asked for {name}")

    async def open_disk(self, path: Path, *, write: bool) -> tuple[int, int]:
        """See Host. QEMU opens its disks itself."""
        raise NotImplementedError(f"QEMU asked for {path}")

    async def filters_effective(self, child: Child, tid: int, beyond: int = 0) -> bool:
        """See Host."""
        if child.name == "virtiofsd":
            return True
        assert beyond == OURS
        if isinstance(self.effective, Exception):
            raise self.effective
        return self.effective

    async def end_loading(self, child: Child) -> None:
        """See Host. Before this QEMU's virtual CPUs do not run."""
        assert isinstance(child, FakeChild)
        child.loading = False

    async def make_jail(self, root: Path, files: Mapping[str, Path]) -> None:
        """See Host. QEMU has none."""
        raise NotImplementedError(f"QEMU's driver asked for a jail at {root}")

    async def until(self, condition: Callable[[FakeHost], bool]) -> None:
        """Let everybody else run until this is so."""
        while not condition(self):  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        """End all children."""
        for child in self.children.values():
            await child.aclose()


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Split a stream of JSON objects, which need nothing between them."""
    buffer = ""
    while data := await reader.read(4096):
        buffer += data.decode()
        while buffer:
            try:
                request, end = json.JSONDecoder().raw_decode(buffer)
            except json.JSONDecodeError:
                break
            yield request
            buffer = buffer[end:].lstrip()


def cannot_start(name: str) -> LaunchError:
    """What a host raises when there is no such program."""
    return LaunchError(f"cannot start {name}: No such file or directory")


async def settle(child: FakeChild) -> None:
    """Behave as a daemon: do nothing that shows."""
    await child.wait()


def end_with(code: int | None = None, *, number: int | None = None, stderr: bytes = b"") -> Behaviour:
    """Behave as a program that ends at once."""

    async def behave(child: FakeChild) -> None:
        child.end(code=code, number=number, stderr=stderr)

    return behave


class FakeQemu:
    """Behaves as QEMU's monitor.

    greeting: what it says first. silent_at: the command that it never answers. end_at: what it does instead
    of answering a command. events: written after the answer to a command. answers: other
    than an empty object. errors: what commands are refused with.
    """

    def __init__(
        self,
        *,
        greeting: bytes = GREETING,
        silent_at: str | None = None,
        end_at: Mapping[str, Callable[[FakeChild], None]] | None = None,
        events: Mapping[str, bytes] | None = None,
        answers: Mapping[str, object] | None = None,
        errors: Mapping[str, str] | None = None,
    ) -> None:
        self._greeting = greeting
        self._silent_at = silent_at
        self._end_at = end_at or {}
        self._events = events or {}
        self._answers = answers or {}
        self._errors = errors or {}

    async def __call__(self, child: FakeChild) -> None:
        """Serve the monitor until the other end hangs up or the process ends."""
        connection = socket.socket(fileno=os.dup(child.fds[MONITOR]))
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        gone = asyncio.ensure_future(child.wait())
        serving = asyncio.ensure_future(self._serve(child, reader, writer))
        try:
            await asyncio.wait({gone, serving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            gone.cancel()
            serving.cancel()
            writer.close()

    async def _serve(
        self, child: FakeChild, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(self._greeting)
        async for request in _requests(reader):
            name = request["execute"]
            child.commands.append(name)
            child.arguments.append(request.get("arguments", {}))
            if name in self._end_at:
                self._end_at[name](child)
                return
            if name == self._silent_at:
                continue
            said: dict[str, object] = {"return": self._answers.get(name, {})}
            if name in self._errors:
                said = {"error": {"class": "GenericError", "desc": self._errors[name]}}
            answer = said | ({"id": request["id"]} if "id" in request else {})
            writer.write(json.dumps(answer).encode() + b"\n" + self._events.get(name, b""))
            if name == "quit":
                await writer.drain()
                child.end(code=0)
                return
        await child.wait()
