"""The host's side of a process's standard streams: raw streams of its own, or calls that read and write.

Raw streams (feature "stream-io") are what our runtime uses; ReadStdout, WriteStdin and their kin are for
runtimes that know only these.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from kata_agent.constants import NO_STREAM
from kata_agent.guest import streams
from kata_agent.guest.errors import StateError, UnsupportedError
from kata_agent.guest.wiring import Ends

_LONGEST_READ = 1 << 20
_GRACE = 0.5  # seconds for output to come after the process ended, as in upstream's agent


class Ports(NamedTuple):
    """The numbers of the streams that the host opened; all 0 if it will read and write with calls."""

    stdin: int
    stdout: int
    stderr: int

    def claim(self, table: streams.StreamTable) -> Stdio:
        """Find what carries the streams.

        Raises:
            NotFoundError: a stream did not arrive; those that did are closed.
        """
        if not any(self):
            return CalledStdio()
        claimed: list[socket.socket | None] = []
        try:
            for number in self:
                stream = None if number in (0, NO_STREAM) else table.claim(number)
                claimed.append(stream)
        except BaseException:
            for stream in claimed:
                if stream is not None:
                    stream.close()
            raise
        return StreamedStdio(*claimed)


class Stdio(Protocol):
    """What carries a process's streams to the host and back."""

    @property
    def wanted(self) -> tuple[bool, bool, bool]:
        """Which of stdin, stdout and stderr the host wants; the others are /dev/null."""

    def attach(self, ends: Ends) -> None:
        """Take the descriptors over (all but the terminal) and begin."""

    def ended(self) -> None:
        """The process ended: nothing more will be read from the host."""

    def close(self) -> None:
        """Release everything; output that nobody has fetched is lost."""

    def read(self, which: int, length: int) -> bytes:
        """At most length bytes of output 1 or 2; waits for some; empty at the end.

        Raises:
            UnsupportedError: the streams are raw ones.
        """

    def write(self, data: bytes) -> int:
        """Give data to stdin; waits until all is taken.

        Raises:
            StateError: stdin is closed. UnsupportedError: the streams are raw ones.
        """

    def close_stdin(self) -> None:
        """No more input will come."""


class StreamedStdio:
    """Raw streams, each moved by a thread of its own, which closes both its sides when it ends."""

    def __init__(
        self, stdin: socket.socket | None, stdout: socket.socket | None, stderr: socket.socket | None
    ) -> None:
        self._streams = (stdin, stdout, stderr)
        self._attached = False
        for stream in self._streams:
            if stream is not None:
                stream.setblocking(False)

    @property
    def wanted(self) -> tuple[bool, bool, bool]:
        stdin, stdout, stderr = self._streams
        return stdin is not None, stdout is not None, stderr is not None

    def attach(self, ends: Ends) -> None:
        self._attached = True
        stdin, stdout, stderr = self._streams
        if stdin is not None and ends.stdin is not None:
            _start("stdin", streams.receive_input, stdin, ends.stdin)
        elif ends.stdin is not None:
            os.close(ends.stdin)
        for name, end, stream in (("stdout", ends.stdout, stdout), ("stderr", ends.stderr, stderr)):
            if end is not None:
                _start(name, streams.send_output, end, stream)
            elif stream is not None:
                streams.end(stream)

    def ended(self) -> None:
        if self._streams[0] is not None:
            streams.wake(self._streams[0])

    def close(self) -> None:
        self.ended()
        if not self._attached:  # else the threads own the streams, and still send what was written
            for stream in self._streams:
                if stream is not None:
                    streams.end(stream)

    def close_stdin(self) -> None:
        """Nothing to do: the end of a stream travels in it, behind the last byte."""

    def read(self, which: int, length: int) -> bytes:
        raise UnsupportedError("this process's output goes to the stream that its creator named")

    def write(self, data: bytes) -> int:
        raise UnsupportedError("this process's input comes from the stream that its creator named")


def _start(name: str, function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, name=name, daemon=True).start()


class CalledStdio:
    """Pipes that the host reads and writes with one call at a time for each."""

    wanted = (True, True, True)

    def __init__(self) -> None:
        self._ends: list[int | None] = [None, None, None]
        self._locks = (threading.Lock(), threading.Lock(), threading.Lock())
        self._state = threading.Lock()
        self._closed = False
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)

    def attach(self, ends: Ends) -> None:
        self._ends = [ends.stdin, ends.stdout, ends.stderr]
        if ends.stdin is not None and ends.terminal is None:
            os.set_blocking(ends.stdin, False)

    def ended(self) -> None:
        with self._state:
            if not self._closed:
                os.eventfd_write(self._ended, 1)

    def close(self) -> None:
        self.ended()  # readers and writers give up, and their locks
        for index in range(3):
            self._close(index)
        with self._state:
            if not self._closed:
                self._closed = True
                os.close(self._ended)

    def _close(self, index: int) -> None:
        with self._locks[index]:
            end, self._ends[index] = self._ends[index], None
            if end is not None:
                os.close(end)

    def read(self, which: int, length: int) -> bytes:
        with self._locks[which]:
            end = self._ends[which]
            if end is None or length == 0:
                return b""
            data = self._read(end, min(length, _LONGEST_READ))
            if not data:
                self._ends[which] = None
                os.close(end)
            return data

    def _read(self, end: int, length: int) -> bytes:
        if not streams.wait_readable(end, self._ended, _GRACE):
            return b""
        try:
            return os.read(end, length)
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal's end
                return b""
            raise

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        with self._locks[0]:
            while view:
                end = self._ends[0]
                if end is None or not streams.wait_writable(end, self._ended):
                    raise StateError("stdin is closed")
                try:
                    view = view[os.write(end, view) :]
                except BlockingIOError:
                    pass  # room for less than what a pipe takes at once: wait again
                except BrokenPipeError:
                    raise StateError("stdin is closed: the process does not read it any more") from None
        return len(data)

    def close_stdin(self) -> None:
        self._close(0)
