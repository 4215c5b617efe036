"""A peer for ttrpc tests that follows a script exactly, right or wrong, over a blocking or asyncio socket."""

from __future__ import annotations

import asyncio
import socket

from google.protobuf.message import Message

from kata_agent.protos import ttrpc_pb2
from kata_agent.ttrpc.frames import Frame, FrameDecoder, FrameType, encode

SERVICE = "grpc.Health"
OTHER_SERVICE = "test.Other"


def request_frame(
    stream: int,
    method: str = "Check",
    *,
    service: str = SERVICE,
    request: Message | bytes = b"",
    timeout_nano: int = 0,
    flags: int = 0,
) -> bytes:
    payload = request if isinstance(request, bytes) else request.SerializeToString()
    envelope = ttrpc_pb2.Request(service=service, method=method, payload=payload, timeout_nano=timeout_nano)
    return encode(stream, FrameType.REQUEST, envelope.SerializeToString(), flags)


def response_frame(stream: int, response: Message | bytes = b"", code: int = 0, message: str = "") -> bytes:
    payload = response if isinstance(response, bytes) else response.SerializeToString()
    envelope = ttrpc_pb2.Response(payload=payload)
    if code:
        envelope.status.code = code
        envelope.status.message = message
    return encode(stream, FrameType.RESPONSE, envelope.SerializeToString())


class Peer:
    """The raw other end of a connection, for asyncio tests."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> Frame:
        """The next frame; EOFError at the end."""
        while not self._frames:
            try:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    async def receive_response(self) -> tuple[int, ttrpc_pb2.Response]:
        frame = await self.receive()
        assert frame.type == FrameType.RESPONSE
        return frame.stream_id, ttrpc_pb2.Response.FromString(frame.payload)
