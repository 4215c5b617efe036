"""The threaded server of the guest, against raw peers and against the asyncio client of the host."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message
from ttrpc_peer import SERVICE, request_frame, response_frame

from kata_agent.protos import agent_pb2, health_pb2, ttrpc_pb2
from kata_agent.ttrpc.blocking import MAX_REQUESTS, MAX_WAITS, BlockingHandler, BlockingServer
from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.envelope import Share
from kata_agent.ttrpc.frames import HEADER_SIZE, MAX_PAYLOAD, Flag, FrameType, encode
from kata_agent.ttrpc.status import Code, RpcError


class Rig:
    """A server on one end of a socketpair, and the other end."""

    def __init__(self, *, max_requests: int = MAX_REQUESTS, max_waits: int = MAX_WAITS) -> None:
        self.release = threading.Event()
        self.running = threading.Semaphore(0)
        self.logged: list[str] = []
        handlers: dict[tuple[str, str], BlockingHandler] = {
            (SERVICE, "Check"): BlockingHandler(health_pb2.CheckRequest, self.check),
            (SERVICE, "Read"): BlockingHandler(agent_pb2.ReadStreamRequest, self.read),
            (SERVICE, "Wait"): BlockingHandler(health_pb2.CheckRequest, self.check, Share.WAIT),
            (SERVICE, "Alive"): BlockingHandler(health_pb2.CheckRequest, self.check, Share.NONE),
        }
        ours, self.sock = socket.socketpair()
        server = BlockingServer(
            handlers, log=self.logged.append, max_requests=max_requests, max_waits=max_waits
        )
        self.thread = threading.Thread(target=server.serve, args=(ours,))
        self.thread.start()

    def check(self, request: health_pb2.CheckRequest) -> Message:
        if request.service == "wait":
            self.running.release()
            self.release.wait()
        elif request.service == "missing":
            raise RpcError(Code.NOT_FOUND, "nothing here")
        elif request.service == "bug":
            raise KeyError("bug")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def read(self, request: agent_pb2.ReadStreamRequest) -> Message:
        return agent_pb2.ReadStreamResponse(data=bytes(request.len))

    def send(self, stream: int, text: str = "a", *, method: str = "Check", flags: int = 0) -> None:
        request = health_pb2.CheckRequest(service=text)
        self.sock.sendall(request_frame(stream, method, request=request, flags=flags))

    def receive(self) -> tuple[int, ttrpc_pb2.Response]:
        length, stream, kind, _ = struct.unpack(">IIBB", self.sock.recv(HEADER_SIZE, socket.MSG_WAITALL))
        assert kind == FrameType.RESPONSE
        payload = self.sock.recv(length, socket.MSG_WAITALL) if length else b""
        return stream, ttrpc_pb2.Response.FromString(payload)

    def answer(self, stream: int) -> tuple[int, str]:
        number, response = self.receive()
        assert number == stream
        return response.status.code, response.status.message

    def ask(self, stream: int, text: str = "a", *, flags: int = 0) -> tuple[int, str]:
        self.send(stream, text, flags=flags)
        return self.answer(stream)

    def close(self) -> None:
        self.release.set()
        self.sock.close()
        self.thread.join()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_requests_run_at_the_same_time(rig: Rig) -> None:
    rig.send(3, "wait")
    rig.send(1, "wait")
    assert rig.ask(5) == (0, "")
    rig.release.set()
    assert {rig.receive()[0], rig.receive()[0]} == {1, 3}


def test_errors(rig: Rig) -> None:
    assert rig.ask(1, "missing") == (Code.NOT_FOUND, "nothing here")
    assert rig.ask(3, "bug") == (Code.INTERNAL, "grpc.Health/Check: internal error: KeyError: 'bug'")
    assert rig.logged == ["grpc.Health/Check failed: KeyError: 'bug'"]
    assert rig.ask(5, flags=Flag.REMOTE_OPEN)[0] == Code.UNIMPLEMENTED
    rig.sock.sendall(request_frame(7, "Nope") + request_frame(9, request=b"\xff"))
    assert rig.answer(7)[0] == Code.UNIMPLEMENTED
    assert rig.answer(9)[0] == Code.INVALID_ARGUMENT


def test_oversized_messages_fail_alone(rig: Rig) -> None:
    rig.sock.sendall(struct.pack(">IIBB", MAX_PAYLOAD + 1, 1, FrameType.REQUEST, 0) + bytes(MAX_PAYLOAD + 1))
    assert rig.answer(1)[0] == Code.RESOURCE_EXHAUSTED
    rig.sock.sendall(request_frame(3, "Read", request=agent_pb2.ReadStreamRequest(len=MAX_PAYLOAD)))
    assert rig.answer(3)[0] == Code.RESOURCE_EXHAUSTED
    assert rig.ask(5) == (0, "")


def test_cap_on_requests_at_once() -> None:
    rig = Rig(max_requests=1)
    rig.send(1, "wait")
    rig.running.acquire()
    assert rig.ask(3) == (Code.RESOURCE_EXHAUSTED, "grpc.Health/Check: too many requests at once")
    rig.release.set()
    assert rig.answer(1) == (0, "")
    rig.close()


def test_waits_are_counted_apart_and_health_not_at_all() -> None:
    rig = Rig(max_requests=1, max_waits=2)
    for stream in (1, 3):
        rig.send(stream, "wait", method="Wait")
        rig.running.acquire()
    rig.send(5, method="Wait")
    assert rig.answer(5) == (Code.RESOURCE_EXHAUSTED, "grpc.Health/Wait: too many requests at once")
    rig.send(9, "wait")
    rig.running.acquire()
    rig.send(11, method="Alive")
    assert rig.answer(11) == (0, "")
    rig.release.set()
    assert {rig.receive()[0] for _ in range(3)} == {1, 3, 9}
    rig.close()


def test_cap_counts_answers_that_nobody_reads() -> None:
    rig = Rig(max_requests=2)
    big = agent_pb2.ReadStreamRequest(len=MAX_PAYLOAD - 100)
    rig.sock.sendall(b"".join(request_frame(stream, "Read", request=big) for stream in range(1, 21, 2)))
    codes = [rig.receive()[1].status.code for _ in range(10)]
    assert set(codes) <= {0, Code.RESOURCE_EXHAUSTED}
    assert codes.count(0) >= 2
    rig.close()


@pytest.mark.parametrize(
    "data",
    [request_frame(2), response_frame(1), encode(1, 99, b""), b"\0\0\0\1" + b"garbage" * 10],
    ids=["even stream", "response", "unknown type", "garbage"],
)
def test_broken_protocol_closes_the_connection(rig: Rig, data: bytes) -> None:
    rig.sock.sendall(data)
    assert rig.sock.recv(1) == b""
    rig.thread.join()
    [line] = rig.logged
    assert line.startswith("ttrpc connection closed: ")


def test_stream_id_in_use_closes_the_connection(rig: Rig) -> None:
    rig.send(1, "wait")
    rig.running.acquire()
    rig.send(1)
    assert rig.sock.recv(1) == b""


def test_peer_gone_before_the_answer(rig: Rig) -> None:
    rig.send(1, "wait")
    rig.running.acquire()
    rig.sock.close()
    rig.thread.join()
    assert rig.logged == []


def test_peer_gone_while_an_answer_is_written(rig: Rig) -> None:
    rig.sock.sendall(request_frame(1, "Read", request=agent_pb2.ReadStreamRequest(len=MAX_PAYLOAD - 100)))
    assert rig.sock.recv(1)
    rig.sock.close()
    rig.thread.join()


async def test_with_the_asyncio_client(rig: Rig) -> None:
    client = await Client.from_socket(rig.sock)
    request, response = health_pb2.CheckRequest, health_pb2.HealthCheckResponse
    waiting = asyncio.create_task(client.call(SERVICE, "Check", request(service="wait"), response))
    answers = await asyncio.gather(*(client.call(SERVICE, "Check", request(), response) for _ in range(50)))
    assert {answer.status for answer in answers} == {response.SERVING}
    with pytest.raises(RpcError):
        await client.call(SERVICE, "Check", request(service="missing"), response)
    rig.release.set()
    assert (await waiting).status == response.SERVING
    await client.aclose()


def test_import_is_cheap() -> None:
    """The guest's interpreter may be emulated: neither an event loop nor logging is loaded for it."""
    code = (
        "import sys, kata_agent.ttrpc.blocking, kata_agent.mux.guest, kata_agent.constants; "
        "print(*sorted({'asyncio', 'logging', 'dataclasses', 'inspect', 'ssl'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == []
