"""The asyncio client against a peer with scripted answers."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from ttrpc_peer import SERVICE, Peer, response_frame

from kata_agent.protos import agent_pb2, health_pb2, ttrpc_pb2
from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.frames import MAX_PAYLOAD, FrameType, encode
from kata_agent.ttrpc.status import Code, ConnectionClosedError, RpcError

SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


class Pair(NamedTuple):
    client: Client
    peer: Peer


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    client = await Client.from_socket(ours)
    with theirs:
        yield Pair(client, Peer(theirs))
        await client.aclose()


def check(
    client: Client, service: str = "a", timeout: float | None = None
) -> asyncio.Task[health_pb2.HealthCheckResponse]:
    request = health_pb2.CheckRequest(service=service)
    return asyncio.create_task(
        client.call(SERVICE, "Check", request, health_pb2.HealthCheckResponse, timeout=timeout)
    )


async def test_request_on_the_wire_and_its_answer(pair: Pair) -> None:
    call = asyncio.create_task(
        pair.client.call(
            SERVICE,
            "Check",
            health_pb2.CheckRequest(service="x"),
            health_pb2.HealthCheckResponse,
            timeout=30,
            metadata=[("key", "value")],
        )
    )
    frame = await pair.peer.receive()
    assert (frame.stream_id, frame.type, frame.flags) == (1, FrameType.REQUEST, 0)
    envelope = ttrpc_pb2.Request.FromString(frame.payload)
    assert (envelope.service, envelope.method, envelope.timeout_nano) == (SERVICE, "Check", 30 * 10**9)
    assert [(item.key, item.value) for item in envelope.metadata] == [("key", "value")]
    assert health_pb2.CheckRequest.FromString(envelope.payload).service == "x"
    await pair.peer.send(response_frame(1, SERVING))
    assert await call == SERVING


async def test_concurrent_calls_answered_in_reverse(pair: Pair) -> None:
    request, response = agent_pb2.ReadStreamRequest, agent_pb2.ReadStreamResponse
    calls = [
        asyncio.create_task(
            pair.client.call("grpc.AgentService", "ReadStdout", request(len=number), response)
        )
        for number in range(20)
    ]
    asked = {}
    for _ in calls:
        frame = await pair.peer.receive()
        payload = ttrpc_pb2.Request.FromString(frame.payload).payload
        asked[frame.stream_id] = request.FromString(payload).len
    assert sorted(asked) == list(range(1, 40, 2))
    for stream in sorted(asked, reverse=True):
        await pair.peer.send(response_frame(stream, response(data=b"%d" % asked[stream])))
    assert [(await call).data for call in calls] == [b"%d" % number for number in range(20)]


async def test_status_becomes_rpc_error(pair: Pair) -> None:
    call = check(pair.client)
    await pair.peer.receive()
    await pair.peer.send(response_frame(1, code=Code.NOT_FOUND, message="no such container"))
    with pytest.raises(RpcError) as caught:
        await call
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "no such container")


async def test_deadline_is_local_and_the_late_answer_ignored(pair: Pair) -> None:
    with pytest.raises(RpcError, match=r"grpc\.Health/Check: no answer within 0\.01 s") as caught:
        await check(pair.client, timeout=0.01)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    await pair.peer.receive()
    await pair.peer.send(response_frame(1, SERVING))
    call = check(pair.client)
    assert (await pair.peer.receive()).stream_id == 3
    await pair.peer.send(response_frame(3, SERVING))
    assert await call == SERVING


async def test_cancelled_call_is_forgotten(pair: Pair) -> None:
    call = check(pair.client)
    await pair.peer.receive()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not pair.client._pending
    await pair.peer.send(response_frame(1, SERVING))
    call = check(pair.client)
    await pair.peer.receive()
    await pair.peer.send(response_frame(3, SERVING))
    assert await call == SERVING


async def test_lost_connection_fails_all_calls(pair: Pair) -> None:
    calls = [check(pair.client) for _ in range(5)]
    for _ in calls:
        await pair.peer.receive()
    pair.peer.sock.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionClosedError] * 5
    await pair.client.wait_closed()
    assert pair.client.closed
    with pytest.raises(ConnectionClosedError):
        await check(pair.client)


async def test_end_within_a_frame_is_named(pair: Pair) -> None:
    call = check(pair.client)
    await pair.peer.receive()
    await pair.peer.send(response_frame(1, SERVING)[:-1])
    pair.peer.sock.close()
    with pytest.raises(ConnectionClosedError, match="within a frame"):
        await call


async def test_aclose_fails_waiting_calls(pair: Pair) -> None:
    call = check(pair.client)
    await pair.peer.receive()
    await pair.client.aclose()
    with pytest.raises(ConnectionClosedError):
        await call


async def test_oversized_request_is_refused_before_it_is_sent(pair: Pair) -> None:
    request = agent_pb2.WriteStreamRequest(data=bytes(MAX_PAYLOAD))
    with pytest.raises(RpcError, match="over the limit") as caught:
        await pair.client.call("grpc.AgentService", "WriteStdin", request, agent_pb2.WriteStreamResponse)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    call = check(pair.client)
    await pair.peer.receive()
    await pair.peer.send(response_frame(1, SERVING))
    assert await call == SERVING


async def test_oversized_answer_fails_one_call(pair: Pair) -> None:
    first, second = check(pair.client), check(pair.client)
    await pair.peer.receive()
    await pair.peer.send(struct.pack(">IIBB", MAX_PAYLOAD + 1, 1, FrameType.RESPONSE, 0))
    await pair.peer.send(bytes(MAX_PAYLOAD + 1) + response_frame(3, SERVING))
    with pytest.raises(RpcError, match="over the limit") as caught:
        await first
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert await second == SERVING


@pytest.mark.parametrize(
    "answer",
    [
        encode(1, FrameType.RESPONSE, b"\xff\xff\xff"),
        response_frame(1, b"\xff\xff\xff"),
        encode(1, FrameType.DATA, b""),
        encode(1, 77, b""),
    ],
    ids=["envelope", "payload", "streaming", "unknown type"],
)
async def test_senseless_answer_is_internal(pair: Pair, answer: bytes) -> None:
    call = check(pair.client)
    await pair.peer.receive()
    await pair.peer.send(answer)
    with pytest.raises(RpcError) as caught:
        await call
    assert caught.value.code is Code.INTERNAL


async def test_answers_to_streams_that_never_were_are_ignored(pair: Pair) -> None:
    call = check(pair.client)
    await pair.peer.receive()
    await pair.peer.send(
        response_frame(99, SERVING) + response_frame(2, SERVING) + response_frame(1, SERVING)
    )
    assert await call == SERVING


async def test_peer_that_does_not_read_bounds_what_is_buffered(pair: Pair) -> None:
    request = agent_pb2.WriteStreamRequest(data=bytes(1 << 20))
    calls = [
        asyncio.create_task(
            pair.client.call("grpc.AgentService", "WriteStdin", request, agent_pb2.WriteStreamResponse)
        )
        for _ in range(20)
    ]
    await asyncio.sleep(0.05)
    transport = pair.client._connection._transport
    assert transport is not None
    assert transport.get_write_buffer_size() < 2 << 20
    for stream in range(1, 41, 2):
        assert (await pair.peer.receive()).stream_id == stream
        await pair.peer.send(response_frame(stream, agent_pb2.WriteStreamResponse(len=stream)))
    assert [(await call).len for call in calls] == list(range(1, 41, 2))


async def test_deadline_counts_while_the_peer_does_not_read(pair: Pair) -> None:
    request = agent_pb2.WriteStreamRequest(data=bytes(3 << 20))
    for _ in range(3):
        with pytest.raises(RpcError) as caught:
            await pair.client.call(
                "grpc.AgentService", "WriteStdin", request, agent_pb2.WriteStreamResponse, timeout=0.01
            )
        assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert not pair.client._pending
