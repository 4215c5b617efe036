"""The tail of a stream: what a child wrote to stderr, what a guest wrote to its console.

The writers are hostile: memory is bounded, and what is shown is printable text only.
"""

from __future__ import annotations

import asyncio
import logging
from typing import BinaryIO, cast

LIMIT = 8 * 1024
LINE_LIMIT = 500


class Tail:
    """Keeps the last bytes of a stream.

    limit: how many bytes are kept.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Append what was read; forget what lies further back than the limit."""
        self._bytes += data[-self._limit :]
        del self._bytes[: -self._limit]

    @property
    def text(self) -> str:
        """What is kept, without control characters (a terminal obeys them) other than the ends of lines."""
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """What is kept, line by line; empty lines left out."""
        decoded = self._bytes.decode("utf-8", errors="replace").replace("\r", "\n")
        printable = (_printable(line) for line in decoded.split("\n"))
        return [line for line in printable if line.strip()]

    @property
    def last_line(self) -> str:
        """The last line that is not empty, shortened; "" when there is none."""
        lines = self.lines
        return lines[-1].strip()[:LINE_LIMIT] if lines else ""


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in line)


class Follower(asyncio.Protocol):
    """Reads a pipe or socket to its end in the background, into a `Tail`.

    log: gets each complete line, at debug.
    """

    def __init__(self, log: logging.Logger | None = None) -> None:
        self.tail = Tail()
        self.ended = asyncio.Event()
        self._closed = asyncio.Event()
        self._log = log
        self._line = Tail()
        self._transport: asyncio.ReadTransport | None = None

    async def follow(self, stream: BinaryIO) -> None:
        """Begin to read. The stream is a pipe or a connected socket; it belongs to the follower now."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: self, stream)

    async def aclose(self) -> None:
        """Stop reading and close the stream."""
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()

    def data_received(self, data: bytes) -> None:
        """Asyncio's callback."""
        self.tail.feed(data)
        if self._log is not None and self._log.isEnabledFor(logging.DEBUG):
            *complete, rest = data.split(b"\n")
            for line in complete:
                self._line.feed(line)
                self._log.debug("%s", self._line.last_line)
                self._line = Tail()
            self._line.feed(rest)

    def eof_received(self) -> None:
        """Asyncio's callback."""
        self.ended.set()

    def connection_lost(self, error: Exception | None) -> None:
        """Asyncio's callback."""
        self.ended.set()
        self._closed.set()


async def follow(stream: object, log: logging.Logger | None = None) -> Follower:
    """Read a pipe or a connected socket to its end, and keep its last bytes."""
    follower = Follower(log)
    await follower.follow(cast(BinaryIO, stream))
    return follower
