"""The asyncio server against raw peers, right and wrong ones, and against our own client."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable

import pytest
from google.protobuf.message import Message
from ttrpc_peer import OTHER_SERVICE, SERVICE, Peer, request_frame, response_frame

from kata_agent.protos import agent_pb2, health_pb2
from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.connection import FrameConnection
from kata_agent.ttrpc.frames import MAX_PAYLOAD, Flag, Frame, FrameType, encode
from kata_agent.ttrpc.server import MAX_REQUESTS, Handler, Server
from kata_agent.ttrpc.status import Code, RpcError


class Service:
    """Handlers that do what the request's text says."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.running = 0
        self.cancelled = 0
        self.errors: list[tuple[str, Exception]] = []

    def handlers(self) -> dict[tuple[str, str], Handler]:
        check = Handler(health_pb2.CheckRequest, self.check)
        return {
            (SERVICE, "Check"): check,
            (OTHER_SERVICE, "Check"): check,
            (SERVICE, "Read"): Handler(agent_pb2.ReadStreamRequest, self.read),
        }

    async def check(self, request: health_pb2.CheckRequest) -> Message:
        if request.service == "wait":
            self.running += 1
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        elif request.service == "missing":
            raise RpcError(Code.NOT_FOUND, "nothing here: \udcff")
        elif request.service == "bug":
            raise KeyError("bug")
        elif request.service == "own timeout":
            raise TimeoutError("of its own")
        elif request.service == "cancelled":
            task = asyncio.create_task(asyncio.sleep(60))
            task.cancel()
            await task
        elif request.service == "wrong type":
            return None  # type: ignore[return-value]
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def read(self, request: agent_pb2.ReadStreamRequest) -> Message:
        return agent_pb2.ReadStreamResponse(data=bytes(request.len))

    def on_error(self, name: str, error: Exception) -> RpcError:
        self.errors.append((name, error))
        return RpcError(Code.FAILED_PRECONDITION, f"mapped {type(error).__name__}")


class Rig:
    def __init__(self, *, max_requests: int = MAX_REQUESTS, hook: bool = True) -> None:
        self.service = Service()
        self.server = Server(
            self.service.handlers(),
            on_error=self.service.on_error if hook else None,
            max_requests=max_requests,
        )
        ours, theirs = socket.socketpair()
        self.peer = Peer(theirs)
        self.task = asyncio.create_task(self.server.serve_connection(ours))

    async def ask(self, stream: int, text: str, *, flags: int = 0, timeout_nano: int = 0) -> tuple[int, str]:
        request = health_pb2.CheckRequest(service=text)
        await self.peer.send(request_frame(stream, request=request, flags=flags, timeout_nano=timeout_nano))
        return await self.answer(stream)

    async def answer(self, stream: int) -> tuple[int, str]:
        number, response = await self.peer.receive_response()
        assert number == stream
        return response.status.code, response.status.message

    async def close(self) -> None:
        self.peer.sock.close()
        await self.task


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until a condition holds; the test's own time limit ends it."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


async def test_answer(rig: Rig) -> None:
    await rig.peer.send(request_frame(1))
    stream, response = await rig.peer.receive_response()
    assert stream == 1
    assert not response.HasField("status")
    answer = health_pb2.HealthCheckResponse.FromString(response.payload)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_one_function_under_two_services(rig: Rig) -> None:
    await rig.peer.send(request_frame(1, service=OTHER_SERVICE))
    assert await rig.answer(1) == (0, "")


async def test_go_clients_mark_unary_requests_as_closed(rig: Rig) -> None:
    assert await rig.ask(1, "a", flags=Flag.REMOTE_CLOSED) == (0, "")


async def test_streaming_is_unimplemented_and_its_data_ignored(rig: Rig) -> None:
    await rig.peer.send(request_frame(1, flags=Flag.REMOTE_OPEN) + encode(1, FrameType.DATA, b"abc"))
    code, message = await rig.answer(1)
    assert (code, message) == (
        Code.UNIMPLEMENTED,
        "grpc.Health/Check: streaming requests are not supported",
    )
    assert await rig.ask(3, "a") == (0, "")


async def test_requests_run_at_the_same_time(rig: Rig) -> None:
    waiting = health_pb2.CheckRequest(service="wait")
    await rig.peer.send(request_frame(3, request=waiting) + request_frame(1, request=waiting))
    assert await rig.ask(5, "a") == (0, "")
    rig.service.release.set()
    assert {(await rig.peer.receive_response())[0] for _ in range(2)} == {1, 3}


async def test_errors_of_handlers(rig: Rig) -> None:
    assert await rig.ask(1, "missing") == (Code.NOT_FOUND, "nothing here: \\udcff")
    assert await rig.ask(3, "bug") == (Code.FAILED_PRECONDITION, "mapped KeyError")
    assert await rig.ask(5, "own timeout") == (Code.FAILED_PRECONDITION, "mapped TimeoutError")
    assert await rig.ask(7, "wrong type") == (Code.FAILED_PRECONDITION, "mapped AttributeError")
    assert [name for name, _ in rig.service.errors] == ["grpc.Health/Check"] * 3
    assert await rig.ask(9, "cancelled") == (Code.CANCELLED, "grpc.Health/Check: cancelled")


async def test_default_error_hook_logs_and_says_internal(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(hook=False)
    code, message = await rig.ask(1, "bug")
    assert (code, message) == (Code.INTERNAL, "grpc.Health/Check: internal error: KeyError: 'bug'")
    assert "grpc.Health/Check failed" in caplog.text
    await rig.close()


async def test_deadline_of_the_caller(rig: Rig) -> None:
    code, message = await rig.ask(1, "wait", timeout_nano=10**7)
    assert (code, message) == (
        Code.DEADLINE_EXCEEDED,
        "grpc.Health/Check: not done within the 0.01 s that the caller allows",
    )
    assert rig.service.cancelled == 1


async def test_unknown_service_and_method(rig: Rig) -> None:
    await rig.peer.send(request_frame(1, service="no.Such"))
    assert await rig.answer(1) == (Code.UNIMPLEMENTED, "service 'no.Such' is not served here")
    await rig.peer.send(request_frame(3, "Nope"))
    assert await rig.answer(3) == (Code.UNIMPLEMENTED, "service grpc.Health has no method 'Nope'")


async def test_malformed_requests_are_invalid(rig: Rig) -> None:
    await rig.peer.send(encode(1, FrameType.REQUEST, b"\xff\xff"))
    assert (await rig.answer(1))[0] == Code.INVALID_ARGUMENT
    await rig.peer.send(request_frame(3, request=b"\xff\xff"))
    code, message = await rig.answer(3)
    assert code == Code.INVALID_ARGUMENT
    assert "not a grpc.CheckRequest" in message


async def test_oversized_request_fails_alone(rig: Rig) -> None:
    await rig.peer.send(struct.pack(">IIBB", MAX_PAYLOAD + 1, 1, FrameType.REQUEST, 0))
    await rig.peer.send(bytes(MAX_PAYLOAD + 1))
    assert (await rig.answer(1))[0] == Code.RESOURCE_EXHAUSTED
    assert await rig.ask(3, "a") == (0, "")


async def test_oversized_answer_becomes_an_error(rig: Rig) -> None:
    await rig.peer.send(request_frame(1, "Read", request=agent_pb2.ReadStreamRequest(len=MAX_PAYLOAD)))
    code, message = await rig.answer(1)
    assert code == Code.RESOURCE_EXHAUSTED
    assert "over the limit" in message


@pytest.mark.parametrize(
    "data",
    [
        request_frame(2),
        response_frame(1),
        encode(1, 99, b""),
        request_frame(1, request=health_pb2.CheckRequest(service="wait")) + request_frame(1),
    ],
    ids=["even stream", "response", "unknown type", "stream id in use"],
)
async def test_broken_protocol_closes_the_connection(rig: Rig, data: bytes) -> None:
    await rig.peer.send(data)
    with pytest.raises(EOFError):
        await rig.peer.receive()
    await rig.task


@pytest.mark.parametrize("length", [1, 9, 11])
async def test_half_a_frame_then_end(rig: Rig, length: int, caplog: pytest.LogCaptureFixture) -> None:
    await rig.peer.send(request_frame(1)[:length])
    await rig.close()
    assert "connection ended within a frame" in caplog.text


async def test_end_of_connection_cancels_its_requests_only() -> None:
    first, second = Rig(), Rig()
    for rig in (first, second):
        await rig.peer.send(request_frame(1, request=health_pb2.CheckRequest(service="wait")))
    await until(lambda: first.service.running + second.service.running == 2)
    await first.close()
    assert first.service.cancelled == 1
    assert second.service.cancelled == 0
    second.service.release.set()
    assert await second.answer(1) == (0, "")
    await second.close()


async def test_too_many_requests() -> None:
    rig = Rig(max_requests=2)
    waiting = health_pb2.CheckRequest(service="wait")
    await rig.peer.send(
        request_frame(1, request=waiting) + request_frame(3, request=waiting) + request_frame(5)
    )
    assert await rig.answer(5) == (
        Code.RESOURCE_EXHAUSTED,
        "grpc.Health/Check: too many requests at once",
    )
    rig.service.release.set()
    await rig.peer.receive()
    await rig.peer.receive()
    assert await rig.ask(7, "a") == (0, "")
    await rig.close()


async def test_client_that_reads_late_gets_every_answer(rig: Rig) -> None:
    big = agent_pb2.ReadStreamRequest(len=1 << 20)
    for stream in range(1, 101, 2):
        await rig.peer.send(request_frame(stream, "Read", request=big))
    answered = set()
    for _ in range(50):
        frame = await rig.peer.receive()
        assert len(frame.payload) > 1 << 20
        answered.add(frame.stream_id)
    assert answered == set(range(1, 101, 2))


async def test_strict_connection_reads_nothing_while_its_peer_does_not() -> None:
    ours, theirs = socket.socketpair()
    frames: list[Frame] = []
    connection = FrameConnection(frames.append, lambda reason: None, strict=True)
    await connection.open(ours)
    peer = Peer(theirs)
    connection.send_now(encode(1, FrameType.RESPONSE, bytes(3 << 20)))
    await peer.send(request_frame(1))
    await asyncio.sleep(0.02)
    assert frames == []
    sending = asyncio.create_task(connection.send(encode(3, FrameType.RESPONSE, b"")))
    assert (await peer.receive()).stream_id == 1
    assert (await peer.receive()).stream_id == 3
    await sending
    await until(lambda: len(frames) == 1)
    theirs.close()
    await connection.wait_closed()


async def test_listener_serves_many_and_ends_them_when_cancelled() -> None:
    service = Service()
    with tempfile.TemporaryDirectory(prefix="t") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(directory, "s")
        listener.bind(path)
        listener.listen()
        serving = asyncio.create_task(Server(service.handlers()).serve(listener))
        clients = []
        for _ in range(3):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            clients.append(await Client.from_socket(sock))
        for client in clients:
            answer = await client.call(
                SERVICE, "Check", health_pb2.CheckRequest(), health_pb2.HealthCheckResponse
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        waiting = health_pb2.CheckRequest(service="wait")
        call = asyncio.create_task(clients[0].call(SERVICE, "Check", waiting, health_pb2.HealthCheckResponse))
        await until(lambda: service.running == 1)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert service.cancelled == 1
        with pytest.raises(RpcError):
            await call
        for client in clients:
            await client.wait_closed()


async def test_it_is_known_when_all_is_answered() -> None:
    rig = Rig()
    await rig.server.answered()
    waiting = health_pb2.CheckRequest(service="wait")
    await rig.peer.send(request_frame(1, request=waiting) + request_frame(3, request=waiting))
    await until(lambda: rig.service.running == 2)
    answered = asyncio.create_task(rig.server.answered())
    await asyncio.sleep(0)
    assert not answered.done()
    rig.service.release.set()
    await answered
    # They are in the socket, so that a process which ends now does not take them along.
    rig.task.cancel()
    assert {(await rig.peer.receive_response())[0] for _ in range(2)} == {1, 3}
    await asyncio.wait({rig.task})
    rig.peer.sock.close()


async def test_a_connection_that_ends_has_nothing_to_be_answered() -> None:
    rig = Rig()
    await rig.peer.send(request_frame(1, request=health_pb2.CheckRequest(service="wait")))
    await until(lambda: rig.service.running == 1)
    answered = asyncio.create_task(rig.server.answered())
    await rig.close()
    await answered
    await rig.server.answered()
