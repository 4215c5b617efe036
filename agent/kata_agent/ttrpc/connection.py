"""A stream socket that carries frames, on asyncio."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from kata_agent.ttrpc.frames import Frame, FrameDecoder, ProtocolError


class FrameConnection(asyncio.Protocol):
    """Calls back for each frame and once for the end; writes with the peer's pace.

    on_frame: called with each frame; a ProtocolError that it raises ends the connection.
    on_lost: called once, with the reason (None: the peer closed it between two frames, or we did).
    strict: read nothing while the peer does not read: for the side whose reading makes more to write. If
        both sides were strict, each could wait for the other.
    """

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[Exception | None], None],
        *,
        strict: bool = False,
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._strict = strict
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._reason: Exception | None = None

    @property
    def closed(self) -> bool:
        """Whether the connection is at its end."""
        return self._transport is None or self._transport.is_closing()

    async def open(self, sock: socket.socket) -> None:
        """Take over a connected stream socket; it is closed with the connection, or when this fails."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            raise

    async def send(self, frame: bytes) -> None:
        """Write one frame once the peer has read enough of those before it.

        Raises:
            ConnectionError: the connection has ended.
        """
        while not self._writable.is_set():
            await self._writable.wait()
        self.send_now(frame)

    def send_now(self, frame: bytes) -> None:
        """Write one frame, however much is waiting. Raises ConnectionError as `send` does."""
        if self.closed:
            raise ConnectionError("connection closed")
        assert self._transport is not None
        self._transport.write(frame)

    def close(self, reason: Exception | None = None) -> None:
        """End the connection at once; what the peer has not let us write is dropped."""
        if self._transport is not None:
            self._reason = self._reason or reason
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return once the socket is closed and `on_lost` was called."""
        await self._closed.wait()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if self.closed:
                    return
                self._on_frame(frame)
        except ProtocolError as error:
            self.close(error)

    def eof_received(self) -> None:
        self.close(ProtocolError("connection ended within a frame") if self._decoder.pending else None)

    def pause_writing(self) -> None:
        self._writable.clear()
        if self._strict and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._strict and self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._on_lost(exc or self._reason)
        self._closed.set()
