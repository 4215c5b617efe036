"""Logs of containers that are files: the shim writes into a pipe, and the broker appends to the file.

So no shim has a file of the host open that can be written. Who owns one with the machine in it could pass it
to virtiofsd, beside the guest's memory, and virtiofsd is root of the host's users: it would set the file's
set-user-ID bit, and whoever executes the log would be root.
"""

from __future__ import annotations

import os

from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.event_loop import EventLoop

MOST_OPEN = 256
"""Logs that a sandbox may have open at a time, each of which takes two descriptors here."""

PIECE = 64 << 10
LARGEST_PIPE = 1 << 20
"""Bytes that a pipe holds at most: who has its other end may have made it so large (fs.pipe-max-size)."""


class ContainerLogs:
    """The logs of one sandbox."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        # By our end of the pipe: the file.
        self._files: dict[int, int] = {}

    def add(self, file: int) -> int:
        """Append to a file, which is this object's from here on, what comes; return where it is written.

        Raises:
            RequestRefusedError: the sandbox has too many.
        """
        if len(self._files) >= MOST_OPEN:
            os.close(file)
            raise RequestRefusedError(f"cannot open a log: the sandbox has {MOST_OPEN} of them open")
        try:
            pipe, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            os.close(file)
            raise
        self._files[pipe] = file

        def take(_: int) -> None:
            self._pass(pipe)

        self._loop.add(pipe, take)
        return theirs

    def _pass(self, pipe: int) -> int:
        """Append what is there, at most a piece; close both at the end. Returns how much it was."""
        try:
            piece = os.read(pipe, PIECE)
        except BlockingIOError:
            return 0
        left = memoryview(piece)
        try:
            while left:
                left = left[os.write(self._files[pipe], left) :]
        except OSError:
            piece = b""  # it is full, or its file system is: who writes learns that nobody reads
        if not piece:
            self._close(pipe)
        return len(piece)

    def _close(self, pipe: int) -> None:
        self._loop.remove(pipe)
        os.close(self._files.pop(pipe))
        os.close(pipe)

    def close(self) -> None:
        """Append what was written so far, and close all; idempotent."""
        for pipe in list(self._files):
            left = LARGEST_PIPE
            while left > 0 and (passed := self._pass(pipe)):
                left -= passed
            if pipe in self._files:
                self._close(pipe)
