"""The host's end of a process's standard streams: FIFOs or logs that containerd named."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from kata_runtime.errors import UnsupportedError
from kata_runtime.stdio.moving import queued

_log = logging.getLogger(__name__)

STREAMS = ("stdin", "stdout", "stderr")

OpenFifo = Callable[[str, str], Awaitable[int]]
OpenLog = Callable[[str], Awaitable[int]]
StartLogger = Callable[[str], Awaitable[tuple[int, int]]]

LOGGERS = ("binary", "binary-v2")
"""Schemes of URIs that name a program to take the output."""


class StdioPaths(NamedTuple):
    """What containerd gave for each stream: a FIFO's path, file:///path, binary:///path, or nothing."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class StdioFiles:
    """The host's end of the streams, opened; -1 where there is none. All are pipes.

    logs: those behind which the broker appends to a file. settle: returns when what it has taken is there.
    """

    def __init__(self, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.logs: set[int] = set()
        self.settle: Callable[[], Awaitable[None]] = _settled

    @classmethod
    async def open(
        cls, paths: StdioPaths, open_fifo: OpenFifo, open_log: OpenLog, start_logger: StartLogger
    ) -> StdioFiles:
        """Open what containerd gave; on an error nothing stays open.

        Output is opened for reading as well, so that a client which detaches does not end the stream and one
        that attaches again finds what it missed. So is the input of a terminal, which has no end of file.
        """
        files = cls()

        async def output(path: str) -> int:
            scheme = _scheme(path)
            if not scheme:
                return await open_fifo(path, "rw")
            if scheme == "file":
                log = unquote(urlsplit(path).path, errors="surrogateescape")
                files.logs.add(fd := await open_log(log))
                return fd
            raise UnsupportedError(
                f"cannot log to {path!r}: use a FIFO, file:///path, or for both streams one binary:///path"
            )

        try:
            if paths.stdin:
                files.stdin = await open_fifo(paths.stdin, "rw" if paths.terminal else "r")
            if _scheme(paths.stdout) in LOGGERS and paths.stderr in ("", paths.stdout):
                files.stdout, files.stderr = await start_logger(paths.stdout)
                if paths.terminal:
                    files.close_one("stderr")
                return files
            if paths.stdout:
                files.stdout = await output(paths.stdout)
            if paths.stderr and not paths.terminal:
                files.stderr = await output(paths.stderr)
        except BaseException:
            files.close()
            raise
        return files

    @property
    def names(self) -> list[str]:
        """Which of STREAMS there are."""
        return [name for name in STREAMS if getattr(self, name) >= 0]

    def close(self) -> None:
        """Close all; idempotent."""
        for name in STREAMS:
            self.close_one(name)

    def close_one(self, name: str) -> None:
        """Close one of STREAMS; idempotent."""
        fd = getattr(self, name)
        setattr(self, name, -1)
        if fd >= 0:
            os.close(fd)

    def unread(self, fd: int) -> int:
        """How many bytes are in a FIFO, or on their way to a log."""
        return queued(fd)

    def write_notice(self, text: str) -> None:
        """Put a last line of the runtime's own behind the process's output, if there is room for it."""
        fd = self.stderr if self.stderr >= 0 else self.stdout
        if fd >= 0:
            write_line(fd, text)


async def _settled() -> None:
    """There is nothing to wait for."""


def _scheme(path: str) -> str:
    """The scheme of a URI; nothing for the path of a FIFO."""
    scheme, separator, _ = path.partition("://")
    return scheme if separator else ""


def write_line(fd: int, text: str) -> None:
    """Write a line to a descriptor that does not block: a whole one, cut at PIPE_BUF bytes, or nothing."""
    line = text.encode()
    if len(line) > select.PIPE_BUF:  # of which a pipe may take a part
        line = line[: select.PIPE_BUF - 1] + b"\n"
    try:
        os.write(fd, line)
    except OSError as error:
        _log.debug("no room for a notice on the container's output: %s", error)
