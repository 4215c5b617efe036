"""A client's side of a process's standard streams: FIFOs that it makes and opens itself."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import anyio

from patience import PATIENCE

F_SETPIPE_SZ = 1031
CHUNK = 1 << 20


class Output:
    """A FIFO that is read. It may be opened late, closed, and opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        os.mkfifo(path, 0o600)

    def open(self) -> None:
        """Open for reading; never waits."""
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._fd, F_SETPIPE_SZ, CHUNK)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def read(self) -> bytes:
        """What is there, at least a byte; nothing at the end."""
        while True:
            with anyio.fail_after(PATIENCE):
                await anyio.wait_readable(self._fd)
            try:
                return os.read(self._fd, CHUNK)
            except BlockingIOError:
                continue

    async def read_all(self) -> bytes:
        """Everything to the end."""
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to the mark and what came with it.

        Raises:
            EOFError: the stream ends before. TimeoutError: nothing more came.
        """
        seen = b""
        while mark not in seen:
            try:
                data = await self.read()
            except TimeoutError:
                raise TimeoutError(f"nothing came after {seen!r} for {PATIENCE:g} s") from None
            if not data:
                raise EOFError(f"the stream ended before {mark!r}: {seen!r}")
            seen += data
        return seen

    def read_now(self) -> bytes:
        """What is there, without waiting."""
        try:
            return os.read(self._fd, CHUNK)
        except BlockingIOError:
            return b""


class Input:
    """A FIFO that is written. It is opened once the shim reads it, that is after Create or Start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        os.mkfifo(path, 0o600)

    async def write(self, data: bytes) -> None:
        """Write all. Raises BrokenPipeError once nobody reads any more."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                with anyio.fail_after(PATIENCE):
                    await anyio.wait_writable(self._fd)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
