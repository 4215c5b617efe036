"""A process's standard streams: between containerd's FIFOs on the host and the guest.

With our agent each stream is a socket to the guest and the kernel moves the bytes (splice); Python only
learns that there are some. With another agent the bytes travel in ReadStdout, ReadStderr and WriteStdin, see
`polled`. A unikernel's are pipes.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import anyio
import anyio.abc

from kata_agent.constants import NO_STREAM
from kata_agent.ttrpc.status import RpcError
from kata_hypervisor.concurrency import race
from kata_runtime.stdio.files import STREAMS, StdioFiles
from kata_runtime.stdio.moving import has_input, move

_log = logging.getLogger(__name__)

# After the process has exited and nobody reads its output, it is kept for so long (seconds), or until Delete.
STALL_BUDGET = 5.0
# How long the exit of a process is held back for a client that reads nothing of its output (seconds).
DELIVERY_BUDGET = 2.0

Pump = Callable[[], Awaitable[None]]
Connect = Callable[[], Awaitable[tuple[socket.socket, int]]]


class Stream(Protocol):
    """Our end of a stream to the guest: a descriptor that does not block."""

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""

    def close(self) -> None:
        """Close it; idempotent."""


async def connect(files: StdioFiles, connect_one: Connect) -> tuple[dict[str, Stream], dict[str, int]]:
    """Open a stream to the guest for each file; on an error none stays open.

    Returns the streams by name, and the number by which the guest knows each, NO_STREAM where there is none.
    """
    streams: dict[str, Stream] = {}
    numbers = dict.fromkeys(STREAMS, NO_STREAM)
    try:
        for name in files.names:
            streams[name], numbers[name] = await connect_one()
    except BaseException:
        for stream in streams.values():
            stream.close()
        raise
    return streams, numbers


class Stdio:
    """Pumps the streams of one process until they end. streams: to the guest, by the name in STREAMS."""

    def __init__(self, files: StdioFiles, streams: Mapping[str, Stream]) -> None:
        self._files = files
        self._streams = dict(streams)
        self._stdin_closing = anyio.Event()
        self._pumps: dict[str, anyio.CancelScope] = {}
        # The outputs that have not been moved to their end.
        self._flowing: set[str] = set()
        self.drained = anyio.Event()
        self._finishing = anyio.Event()
        self._progress = 0

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Start pumping the connected streams in the background."""
        pumps = {"stdin": self._pump_input, "stdout": self._pump_stdout, "stderr": self._pump_stderr}
        self._begin(tasks, {name: pumps[name] for name in self._streams})

    def _begin(self, tasks: anyio.abc.TaskGroup, pumps: Mapping[str, Pump]) -> None:
        self._pumps = {name: anyio.CancelScope() for name in pumps}
        self._flowing = pumps.keys() - {"stdin"}
        self._check_drained()
        for name, pump in pumps.items():
            tasks.start_soon(self._run, name, pump)

    async def _run(self, name: str, pump: Pump) -> None:
        """Run a pump, let a late reader take what is in the FIFO, then close what bytes were moved between.

        An output stays open until the process has exited: whatever ends it may still have a notice to write.
        Nobody else closes that: a descriptor closed under a task that waits for it comes back as another's.
        """
        try:
            with self._pumps[name]:
                try:
                    await pump()
                except (OSError, RpcError) as error:
                    _log.debug("%s ended: %s", name, error)
                self._moved(name)
                if name != "stdin" and (fifo := getattr(self._files, name)) >= 0:
                    await self._finishing.wait()
                    await self._until_taken(fifo)
        finally:
            del self._pumps[name]
            self._close_one(name)
            self._moved(name)

    def _moved(self, name: str) -> None:
        self._flowing.discard(name)
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._flowing:
            self.drained.set()

    def close_stdin(self) -> None:
        """Give what is still in the FIFO to the process, then end its standard input."""
        self._stdin_closing.set()

    async def deliver(self) -> None:
        """After the process's exit, before it is reported: wait until its client has read its output.

        containerd's clients close their end of the FIFOs as soon as they know the status, whatever is in them
        (task.Delete in its Go client). One that reads nothing, or is not there, is waited for no longer than
        DELIVERY_BUDGET, and so is output that a descendant of the process may still write.
        """
        pause, moved, deadline = 0.001, -1, 0.0
        while not self.drained.is_set() or self._unread():
            before, moved = moved, self._progress - self._unread()
            if moved != before:
                deadline = anyio.current_time() + DELIVERY_BUDGET
            elif anyio.current_time() > deadline:
                return
            await anyio.sleep(pause)
            pause = min(2 * pause, 0.05)
        if self._files.logs:
            await self._files.settle()

    def _unread(self) -> int:
        """How many bytes of output are in the FIFOs."""
        return sum(self._files.unread(fd) for fd in (self._files.stdout, self._files.stderr) if fd >= 0)

    async def finish(self) -> None:
        """After the process's end: wait until its output is in the FIFOs, as long as somebody takes it."""
        self._finishing.set()
        while not self.drained.is_set():
            before = self._progress
            with anyio.move_on_after(STALL_BUDGET):
                await self.drained.wait()
            if self._progress == before and not self.drained.is_set():
                self.close()
        if (scope := self._pumps.get("stdin")) is not None:
            scope.cancel()

    def close(self) -> None:
        """End the pumps and close every descriptor; idempotent."""
        for scope in self._pumps.values():
            scope.cancel()
        for name in set(STREAMS) - self._pumps.keys():
            self._close_one(name)
        self.drained.set()

    def _close_one(self, name: str) -> None:
        if (stream := self._streams.pop(name, None)) is not None:
            stream.close()
        self._files.close_one(name)

    def notice(self, text: str) -> None:
        """Write a line of the runtime's own to the process's output, see StdioFiles.write_notice."""
        self._files.write_notice(text)

    async def _until_taken(self, fifo: int) -> None:
        """Wait until a reader has emptied a FIFO, but not for ever: what is in it is lost when it closes."""
        pause = 0.001
        with anyio.move_on_after(STALL_BUDGET):
            while self._files.unread(fifo):
                await anyio.sleep(pause)
                pause = min(2 * pause, 0.05)

    async def _pump_stdout(self) -> None:
        await self._pump_output("stdout", self._files.stdout)

    async def _pump_stderr(self) -> None:
        await self._pump_output("stderr", self._files.stderr)

    async def _pump_output(self, name: str, fifo: int) -> None:
        while moved := await move(self._streams[name].fileno(), fifo):
            self._progress += moved

    async def _pump_input(self) -> None:
        stream, fifo = self._streams["stdin"], self._files.stdin
        while await self._wait_input(fifo):
            if await move(fifo, stream.fileno()) == 0:
                break
        if isinstance(stream, socket.socket):  # a pipe is only closed
            stream.shutdown(socket.SHUT_WR)

    async def _wait_input(self, fifo: int) -> bool:
        """Wait for input; False once CloseIO was asked for and nothing is left."""
        if not self._stdin_closing.is_set():
            await race(lambda: anyio.wait_readable(fifo), self._stdin_closing.wait)
        return not self._stdin_closing.is_set() or has_input(fifo)
