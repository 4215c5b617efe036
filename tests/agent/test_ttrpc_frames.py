"""The frame codec: any chunking gives the same frames, and no input makes it hold more than one payload."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.protos import agent_pb2, health_pb2
from kata_agent.ttrpc.frames import HEADER_SIZE, MAX_PAYLOAD, Frame, FrameDecoder, ProtocolError, encode
from kata_agent.ttrpc.service import service_of
from kata_agent.ttrpc.status import Code, ConnectionClosedError, RpcError

frames = st.builds(
    Frame,
    stream_id=st.integers(0, 0xFFFFFFFF),
    type=st.integers(0, 255),
    flags=st.integers(0, 255),
    payload=st.binary(max_size=200),
    oversized=st.just(0),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 5000), max_size=20))
def test_frames_survive_any_chunking(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(encode(f.stream_id, f.type, f.payload, f.flags) for f in sent)
    decoder = FrameDecoder()
    received = [frame for piece in pieces(stream, cuts) for frame in decoder.feed(piece)]
    assert received == sent
    assert not decoder.pending


@given(st.lists(st.integers(0, 1 << 30), max_size=8))
def test_oversized_payload_is_skipped_and_the_next_frame_read(cuts: list[int]) -> None:
    length = MAX_PAYLOAD + 5
    stream = struct.pack(">IIBB", length, 7, 1, 0) + bytes(length) + encode(9, 1, b"next")
    decoder = FrameDecoder()
    received = [frame for piece in pieces(stream, cuts) for frame in decoder.feed(piece)]
    assert received == [Frame(7, 1, 0, b"", length), Frame(9, 1, 0, b"next")]


def test_huge_length_is_not_held() -> None:
    decoder = FrameDecoder()
    decoder.feed(struct.pack(">IIBB", 0xFFFFFFFF, 1, 1, 0))
    for _ in range(64):
        assert decoder.feed(bytes(1 << 20)) == []
    assert len(decoder._buffer) == 0
    assert decoder.pending


def test_captured_vector() -> None:
    assert encode(3, 1, b"\x01\x02", 1) == b"\x00\x00\x00\x02\x00\x00\x00\x03\x01\x01\x01\x02"
    assert HEADER_SIZE == 10


def test_payload_at_the_limit_passes_and_one_more_byte_does_not() -> None:
    [frame] = FrameDecoder().feed(encode(1, 1, bytes(MAX_PAYLOAD)))
    assert len(frame.payload) == MAX_PAYLOAD
    with pytest.raises(ProtocolError, match="over the limit"):
        encode(1, 1, bytes(MAX_PAYLOAD + 1))


def test_service_from_descriptor() -> None:
    service = service_of(health_pb2.DESCRIPTOR.services_by_name["Health"])
    assert service.full_name == "grpc.Health"
    assert service.methods["Check"].request is health_pb2.CheckRequest
    assert service.methods["Check"].response is health_pb2.HealthCheckResponse
    assert len(service_of(agent_pb2.DESCRIPTOR.services_by_name["AgentService"]).methods) == 42


def test_unknown_status_code_becomes_unknown() -> None:
    assert RpcError(99, "x").code is Code.UNKNOWN
    assert ConnectionClosedError().code is Code.UNAVAILABLE
