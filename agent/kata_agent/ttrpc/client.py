"""A ttrpc client on asyncio: unary calls, any number at once, over one connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kata_agent.protos import ttrpc_pb2
from kata_agent.ttrpc.connection import FrameConnection
from kata_agent.ttrpc.frames import MAX_PAYLOAD, Frame, FrameType, ProtocolError, encode
from kata_agent.ttrpc.status import Code, ConnectionClosedError, RpcError

Response = TypeVar("Response", bound=Message)

_LAST_STREAM = 0xFFFFFFFF
# A deadline further away than this is none: timeout_nano is a signed 64-bit number of nanoseconds.
_LONGEST_TIMEOUT = (1 << 63) / 1e9


class Client:
    """One connection to a ttrpc server; make it with `from_socket`."""

    def __init__(self) -> None:
        self._connection = FrameConnection(self._answered, self._on_lost)
        self._pending: dict[int, asyncio.Future[Frame | None]] = {}
        self._next_stream = 1
        self._lost = "ttrpc connection closed"

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Client:
        """A client over a connected stream socket, which it owns from here on."""
        client = cls()
        await client._connection.open(sock)
        return client

    @property
    def closed(self) -> bool:
        """Whether no more calls can be made."""
        return self._connection.closed

    async def wait_closed(self) -> None:
        """Return once the connection has ended, for whatever reason."""
        await self._connection.wait_closed()

    async def aclose(self) -> None:
        """End the connection; calls that wait fail with ConnectionClosedError."""
        self._connection.close()
        await self._connection.wait_closed()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[Response],
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> Response:
        """Call a method and return its answer. Cancelling the call forgets it; the server is not notified.

        timeout: seconds until the call fails here; the server is notified, so that it can give up too.

        Raises:
            RpcError: what the server answered, or DEADLINE_EXCEEDED, or RESOURCE_EXHAUSTED for a request or
                an answer over the limit of 4 MiB, or INTERNAL for an answer that makes no sense.
            ConnectionClosedError: the connection ended before the answer came.
        """
        name = f"{service}/{method}"
        envelope = ttrpc_pb2.Request(
            service=service,
            method=method,
            payload=request.SerializeToString(),
            metadata=[ttrpc_pb2.KeyValue(key=key, value=value) for key, value in metadata],
        )
        if timeout is not None and timeout < _LONGEST_TIMEOUT:
            envelope.timeout_nano = max(1, int(timeout * 1e9))
        try:
            async with asyncio.timeout(timeout):
                frame = await self._exchange(name, envelope.SerializeToString())
        except TimeoutError:
            raise RpcError(Code.DEADLINE_EXCEEDED, f"{name}: no answer within {timeout:g} s") from None
        return _open_response(name, frame, response)

    async def _exchange(self, name: str, payload: bytes) -> Frame:
        if self.closed:
            raise ConnectionClosedError(f"{name}: {self._lost}")
        stream = self._next_stream
        if stream > _LAST_STREAM:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"{name}: all stream ids of the connection were used")
        try:
            frame = encode(stream, FrameType.REQUEST, payload)
        except ProtocolError as error:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"{name}: {error}") from None
        self._next_stream += 2
        answer: asyncio.Future[Frame | None] = asyncio.get_running_loop().create_future()
        self._pending[stream] = answer
        try:
            await self._connection.send(frame)
            received = await answer
        except ConnectionError:
            received = None
        finally:
            del self._pending[stream]
        if received is None:
            raise ConnectionClosedError(f"{name}: {self._lost}")
        return received

    def _answered(self, frame: Frame) -> None:
        answer = self._pending.get(frame.stream_id)
        if answer is not None and not answer.done():  # else it is late: its caller was cancelled or timed out
            answer.set_result(frame)

    def _on_lost(self, reason: Exception | None) -> None:
        if reason is not None:
            self._lost = f"ttrpc connection lost: {reason}"
        for answer in self._pending.values():
            if not answer.done():
                answer.set_result(None)


def _open_response(name: str, frame: Frame, response: type[Response]) -> Response:
    if frame.type != FrameType.RESPONSE:
        raise RpcError(Code.INTERNAL, f"{name}: the server answered with a frame of type {frame.type}")
    if frame.oversized:
        raise RpcError(
            Code.RESOURCE_EXHAUSTED,
            f"{name}: answer of {frame.oversized} bytes is over the limit of {MAX_PAYLOAD}",
        )
    try:
        envelope = ttrpc_pb2.Response.FromString(frame.payload)
        if envelope.status.code != Code.OK:
            raise RpcError(envelope.status.code, envelope.status.message)
        return response.FromString(envelope.payload)
    except DecodeError:
        raise RpcError(
            Code.INTERNAL, f"{name}: malformed answer, not a {response.DESCRIPTOR.full_name}"
        ) from None
