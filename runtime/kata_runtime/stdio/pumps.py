"""A process's standard streams: between containerd's FIFOs on the host and the guest.

With our agent each stream is a socket to the guest and the kernel moves the bytes (splice); Python only
learns that there are some. With another agent the bytes travel in ReadStdout, ReadStderr and WriteStdin.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio
import anyio.abc

from kata_agent.constants import NO_STREAM
from kata_agent.ttrpc.status import RpcError
from kata_runtime.concurrency import race
from kata_runtime.errors import UnsupportedError

_log = logging.getLogger(__name__)

CHUNK = 1 << 20
# After the process has ended and nobody reads its output, it is kept for so long (seconds), or until Delete.
STALL_BUDGET = 5.0
# How long the end of a process is held back for a client that reads nothing of its output (seconds).
DELIVERY_BUDGET = 0.5

OpenFifo = Callable[[str, str], Awaitable[int]]
Pump = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class StdioPaths:
    """What containerd gave for each stream: a path of a FIFO, file:///path for a log, or nothing."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class StdioFiles:
    """The host's end of the streams, opened; -1 where there is none. All but those in `logs` are FIFOs."""

    def __init__(self, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.logs: set[int] = set()

    @classmethod
    async def open(
        cls, paths: StdioPaths, open_fifo: OpenFifo, open_log: Callable[[str], Awaitable[int]]
    ) -> StdioFiles:
        """Open what containerd gave; on an error nothing stays open.

        Output is opened for reading as well, so that a client which detaches does not end the stream and one
        that attaches again finds what it missed. So is the input of a terminal, which has no end of file.
        """
        files = cls()

        async def output(path: str) -> int:
            scheme, separator, rest = path.partition("://")
            if not separator:
                return await open_fifo(path, "rw")
            if scheme == "file":
                files.logs.add(fd := await open_log(rest))
                return fd
            raise UnsupportedError(
                f"cannot log to {path!r}: use a FIFO or file:///path (binary loggers are not supported)"
            )

        try:
            if paths.stdin:
                files.stdin = await open_fifo(paths.stdin, "rw" if paths.terminal else "r")
            if paths.stdout:
                files.stdout = await output(paths.stdout)
            if paths.stderr and not paths.terminal:
                files.stderr = await output(paths.stderr)
        except BaseException:
            files.close()
            raise
        return files

    def close(self) -> None:
        """Close all; idempotent."""
        for name in ("stdin", "stdout", "stderr"):
            self.close_one(name)

    def close_one(self, name: str) -> None:
        """Close one of "stdin", "stdout", "stderr"; idempotent."""
        fd = getattr(self, name)
        setattr(self, name, -1)
        if fd >= 0:
            os.close(fd)

    def unread(self, fd: int) -> int:
        """How many bytes are in a FIFO; 0 for a log."""
        return 0 if fd in self.logs else queued(fd)

    def write_notice(self, text: str) -> None:
        """Put a last line of the runtime's own behind the process's output, if there is room for it."""
        fd = self.stderr if self.stderr >= 0 else self.stdout
        if fd >= 0:
            try:
                os.write(fd, text.encode())
            except OSError as error:
                _log.debug("no room for a notice on the container's output: %s", error)


class Stdio:
    """Pumps the streams of one process until they end."""

    def __init__(self, files: StdioFiles) -> None:
        self._files = files
        self._sockets: dict[str, socket.socket] = {}
        self._stdin_closing = anyio.Event()
        self._pumps: dict[str, anyio.CancelScope] = {}
        # The outputs that have not been moved to their end.
        self._flowing: set[str] = set()
        self.drained = anyio.Event()
        self._finishing = anyio.Event()
        self._progress = 0

    async def connect(self, connect: Callable[[], Awaitable[tuple[socket.socket, int]]]) -> dict[str, int]:
        """Open a stream to the guest for each file; returns the number of each, for the agent's request."""
        ports = dict.fromkeys(("stdin", "stdout", "stderr"), NO_STREAM)
        for name in ports:
            if getattr(self._files, name) >= 0:
                self._sockets[name], ports[name] = await connect()
        return ports

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Start pumping the connected streams in the background."""
        pumps = {"stdin": self._pump_input, "stdout": self._pump_stdout, "stderr": self._pump_stderr}
        self._begin(tasks, {name: pumps[name] for name in self._sockets})

    def _begin(self, tasks: anyio.abc.TaskGroup, pumps: Mapping[str, Pump]) -> None:
        self._pumps = {name: anyio.CancelScope() for name in pumps}
        self._flowing = pumps.keys() - {"stdin"}
        self._check_drained()
        for name, pump in pumps.items():
            tasks.start_soon(self._run, name, pump)

    async def _run(self, name: str, pump: Pump) -> None:
        """Run a pump, let a late reader take what is in the FIFO, then close what bytes were moved between.

        An output stays open until the process has ended: whatever ends it may still have a notice to write.
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
        """After the process's end, before anybody hears of it: wait until its client has read its output.

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
        for name in {"stdin", "stdout", "stderr"} - self._pumps.keys():
            self._close_one(name)
        self.drained.set()

    def _close_one(self, name: str) -> None:
        if (sock := self._sockets.pop(name, None)) is not None:
            sock.close()
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
        while moved := await _move(self._sockets[name].fileno(), fifo):
            self._progress += moved

    async def _pump_input(self) -> None:
        sock, fifo = self._sockets["stdin"], self._files.stdin
        while await self._wait_input(fifo):
            if await _move(fifo, sock.fileno()) == 0:
                break
        sock.shutdown(socket.SHUT_WR)

    async def _wait_input(self, fifo: int) -> bool:
        """Wait for input; False once CloseIO was asked for and nothing is left."""
        if not self._stdin_closing.is_set():
            await race(lambda: anyio.wait_readable(fifo), self._stdin_closing.wait)
        return not self._stdin_closing.is_set() or has_input(fifo)


async def _move(source: int, target: int) -> int:
    """Move what is there, at least a byte, from one descriptor to the other; 0 at the end of the source."""
    while True:
        try:
            return os.splice(source, target, CHUNK, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            await _wait_ready(source, target)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return await _copy(source, target)


async def _wait_ready(source: int, target: int) -> None:
    await anyio.wait_readable(source)
    await anyio.wait_writable(target)


async def _copy(source: int, target: int) -> int:
    """As `_move`, through this process: for a target such as a log file opened for appending."""
    while True:
        try:
            data = os.read(source, 1 << 16)
            break
        except BlockingIOError:
            await anyio.wait_readable(source)
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            await anyio.wait_writable(target)
    return len(data)


def queued(fifo: int) -> int:
    """How many bytes are in a FIFO."""
    (count,) = struct.unpack("i", fcntl.ioctl(fifo, termios.FIONREAD, bytes(4)))
    return int(count)


def has_input(fifo: int) -> bool:
    """Whether there is something in a FIFO. At its end there is nothing, and nothing will come."""
    return queued(fifo) > 0
