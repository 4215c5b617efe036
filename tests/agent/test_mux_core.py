"""The multiplexer's protocol: whatever two honest sides do arrives whole, and no dishonest one gets far."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kata_agent.mux.core import (
    MAX_DATA,
    MAX_STREAMS,
    WINDOW,
    Event,
    FrameType,
    Mux,
    ProtocolError,
)

HELLO = b"katamux\x01"


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BII", kind, stream, len(payload)) + payload


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def take(mux: Mux) -> bytes:
    data = bytes(mux.output)
    mux.output.clear()
    return data


def pair() -> tuple[Mux, Mux]:
    """Host and guest that have greeted each other."""
    host, guest = Mux(host=True), Mux(host=False)
    assert [event.type for event in guest.receive(take(host))] == [FrameType.HELLO]
    assert [event.type for event in host.receive(take(guest))] == [FrameType.HELLO]
    assert host.ready
    assert guest.ready
    return host, guest


def opened(port: int = 1024) -> tuple[Mux, Mux, int]:
    host, guest = pair()
    stream = host.open(port)
    assert list(guest.receive(take(host))) == [Event(FrameType.OPEN, stream, number=port)]
    guest.accept(stream)
    assert list(host.receive(take(guest))) == [Event(FrameType.ACCEPT, stream)]
    return host, guest, stream


def test_frames_on_the_wire() -> None:
    host = Mux(host=True)
    host.open(1024)
    assert take(host) == frame(1, 0, HELLO) + frame(2, 1, b"\0\0\4\0")


def test_stream_from_open_to_its_end() -> None:
    host, guest, stream = opened()
    host.send(stream, b"question")
    host.finish(stream)
    assert list(guest.receive(take(host))) == [
        Event(FrameType.DATA, stream, b"question"),
        Event(FrameType.EOF, stream),
    ]
    guest.send(stream, b"answer")
    guest.finish(stream)
    assert list(host.receive(take(guest))) == [
        Event(FrameType.DATA, stream, b"answer"),
        Event(FrameType.EOF, stream),
    ]
    assert not host._streams
    assert not guest._streams


def test_refusal_and_reset() -> None:
    host, guest = pair()
    stream = host.open(9)
    list(guest.receive(take(host)))
    guest.refuse(stream)
    assert list(host.receive(take(guest))) == [Event(FrameType.REFUSE, stream)]

    host, guest, stream = opened()
    guest.send(stream, b"x")
    host.reset(stream)
    assert list(guest.receive(take(host))) == [Event(FrameType.RESET, stream)]
    assert list(host.receive(take(guest))) == []  # the data crossed the reset
    assert guest.credit(stream) == 0
    host.reset(stream)
    assert take(host) == b""


def test_credit_runs_out_and_comes_back() -> None:
    host, guest, stream = opened()
    while host.credit(stream):
        host.send(stream, bytes(MAX_DATA))
    events = list(guest.receive(take(host)))
    assert sum(len(event.data) for event in events) == WINDOW
    guest.consume(stream, 1)
    assert take(guest) == b""
    guest.consume(stream, WINDOW - 1)
    assert list(host.receive(take(guest))) == [Event(FrameType.WINDOW, stream, number=WINDOW)]
    assert host.credit(stream) == WINDOW


def test_more_than_the_credit_cannot_be_sent() -> None:
    host, _, stream = opened()
    for _ in range(WINDOW // MAX_DATA):
        host.send(stream, bytes(MAX_DATA))
    with pytest.raises(AssertionError):
        host.send(stream, b"x")


def test_too_many_streams() -> None:
    host, guest = pair()
    for _ in range(MAX_STREAMS):
        host.open(1)
    with pytest.raises(OSError, match="too many streams"):
        host.open(1)
    for event in guest.receive(take(host)):
        guest.accept(event.stream)
    take(guest)
    assert list(guest.receive(frame(FrameType.OPEN, MAX_STREAMS + 1, number(1)))) == []
    assert take(guest) == frame(FrameType.REFUSE, MAX_STREAMS + 1)


def greeted_host(host: Mux) -> None:
    list(host.receive(frame(FrameType.HELLO, 0, HELLO)))


def with_stream(*answers: bytes) -> Callable[[Mux], None]:
    def prepare(host: Mux) -> None:
        greeted_host(host)
        host.open(1)
        for answer in answers:
            list(host.receive(answer))

    return prepare


ACCEPT = frame(FrameType.ACCEPT, 1)


@pytest.mark.parametrize(
    ("prepare", "data"),
    [
        (lambda host: None, b"login: \r\n guest"),
        (lambda host: None, frame(FrameType.HELLO, 0, b"katamux\x02")),
        (lambda host: None, frame(FrameType.HELLO, 1, HELLO)),
        (lambda host: None, frame(FrameType.RESET, 1)),
        (greeted_host, frame(FrameType.HELLO, 0, HELLO)),
        (greeted_host, frame(0, 0)),
        (greeted_host, frame(FrameType.OPEN, 1, number(1))),
        (greeted_host, frame(FrameType.DATA, 1, b"x")),
        (greeted_host, frame(FrameType.RESET, 0)),
        (with_stream(), frame(FrameType.ACCEPT, 2)),
        (with_stream(), frame(FrameType.DATA, 1, b"x")),
        (with_stream(), frame(FrameType.EOF, 1)),
        (with_stream(ACCEPT), ACCEPT),
        (with_stream(ACCEPT), frame(FrameType.REFUSE, 1)),
        (with_stream(ACCEPT), frame(FrameType.WINDOW, 1, number(1))),
        (with_stream(ACCEPT), frame(FrameType.WINDOW, 1, number(0))),
        (with_stream(ACCEPT), frame(FrameType.WINDOW, 1, number(0xFFFFFFFF))),
        (with_stream(ACCEPT), struct.pack(">BII", FrameType.DATA, 1, MAX_DATA + 1)),
        (with_stream(ACCEPT), frame(FrameType.DATA, 1)),
        (with_stream(ACCEPT), frame(FrameType.EOF, 1, b"x")),
        (with_stream(ACCEPT), frame(FrameType.DATA, 1, bytes(MAX_DATA)) * 4 + frame(FrameType.DATA, 1, b"x")),
        (with_stream(ACCEPT), frame(FrameType.EOF, 1) * 2),
        (with_stream(ACCEPT), frame(FrameType.EOF, 1) + frame(FrameType.DATA, 1, b"x")),
    ],
)
def test_host_refuses(prepare: Callable[[Mux], None], data: bytes) -> None:
    host = Mux(host=True)
    prepare(host)
    with pytest.raises(ProtocolError):
        list(host.receive(data))


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameType.OPEN, 0, number(1)),
        frame(FrameType.OPEN, 5, number(1)) * 2,
        frame(FrameType.OPEN, 5, number(1)) + frame(FrameType.OPEN, 4, number(1)),
        frame(FrameType.OPEN, 1, number(1)) + frame(FrameType.ACCEPT, 1),
    ],
)
def test_guest_refuses(data: bytes) -> None:
    guest = Mux(host=False)
    greeted_host(guest)
    with pytest.raises(ProtocolError):
        list(guest.receive(data))


def test_peer_that_asks_and_never_reads() -> None:
    guest = Mux(host=False)
    greeted_host(guest)

    def ask(opens: bytes) -> None:
        for event in guest.receive(opens):
            guest.refuse(event.stream)

    opens = b"".join(frame(FrameType.OPEN, stream, number(1)) for stream in range(1, 1 << 17))
    with pytest.raises(ProtocolError, match="does not read"):
        ask(opens)
    assert len(guest.output) < 2 << 20


@given(st.binary(max_size=2000), st.booleans())
def test_garbage_never_does_more_than_end_it(data: bytes, greeted: bool) -> None:
    host = Mux(host=True)
    if greeted:
        greeted_host(host)
    try:
        list(host.receive(data))
    except ProtocolError:
        pass
    assert len(host._input) <= len(data)
    assert not host._streams


class TwoSides(RuleBasedStateMachine):
    """A host and a guest that do what they like, over two byte streams cut anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = (Mux(host=True), Mux(host=False))
        self.wire = (bytearray(), bytearray())  # what each side has sent and the other has not seen
        self.sent: dict[tuple[int, int], bytes] = {}
        self.received: dict[tuple[int, int], bytes] = {}
        self.unread: dict[tuple[int, int], int] = {}
        self.open = (set[int](), set[int]())
        self.ended = (set[int](), set[int]())
        self.reset: set[int] = set()

    @precondition(lambda self: self.sides[0].ready)
    @rule(port=st.integers(0, 0xFFFFFFFF))
    def host_opens(self, port: int) -> None:
        self.sides[0].open(port)

    @rule(side=st.integers(0, 1), data=st.data(), size=st.integers(1, MAX_DATA))
    def send(self, side: int, data: st.DataObject, size: int) -> None:
        if not self.open[side]:
            return
        stream = data.draw(st.sampled_from(sorted(self.open[side])))
        size = min(size, self.sides[side].credit(stream))
        if size:
            content = bytes([len(self.sent.get((side, stream), b"")) % 251]) * size
            self.sides[side].send(stream, content)
            self.sent[side, stream] = self.sent.get((side, stream), b"") + content

    @rule(side=st.integers(0, 1), data=st.data(), reset=st.booleans())
    def end(self, side: int, data: st.DataObject, reset: bool) -> None:
        if not self.open[side]:
            return
        stream = data.draw(st.sampled_from(sorted(self.open[side])))
        self.open[side].discard(stream)
        if reset:
            self.sides[side].reset(stream)
            self.reset.add(stream)
        else:
            self.sides[side].finish(stream)

    @rule(side=st.integers(0, 1), data=st.data())
    def user_reads(self, side: int, data: st.DataObject) -> None:
        waiting = sorted(key for key, count in self.unread.items() if key[0] == side and count)
        if waiting:
            key = data.draw(st.sampled_from(waiting))
            count = data.draw(st.integers(1, self.unread[key]))
            self.unread[key] -= count
            self.sides[side].consume(key[1], count)

    @rule(side=st.integers(0, 1), cut=st.integers(1, 200_000))
    def deliver(self, side: int, cut: int) -> None:
        self.wire[side].extend(take(self.sides[side]))
        piece = bytes(self.wire[side][:cut])
        del self.wire[side][:cut]
        other = 1 - side
        for event in self.sides[other].receive(piece):
            self.happened(other, event)

    def happened(self, side: int, event: Event) -> None:
        key = (side, event.stream)
        if event.type == FrameType.OPEN:
            if event.number % 7 == 0:
                self.sides[side].refuse(event.stream)
            else:
                self.sides[side].accept(event.stream)
                self.open[side].add(event.stream)
        elif event.type == FrameType.ACCEPT:
            self.open[side].add(event.stream)
        elif event.type == FrameType.DATA:
            self.received[key] = self.received.get(key, b"") + event.data
            self.unread[key] = self.unread.get(key, 0) + len(event.data)
        elif event.type == FrameType.EOF:
            self.ended[side].add(event.stream)
        elif event.type == FrameType.RESET:
            self.open[side].discard(event.stream)

    @invariant()
    def what_arrives_is_what_was_sent(self) -> None:
        for (side, stream), data in self.received.items():
            sent = self.sent[1 - side, stream]
            assert sent.startswith(data)
            if stream in self.ended[side]:
                assert sent == data

    @invariant()
    def nobody_holds_more_than_a_window(self) -> None:
        assert all(count <= WINDOW for count in self.unread.values())

    def teardown(self) -> None:
        for _ in range(4):
            for side in (0, 1):
                self.deliver(side, 1 << 30)
        for key, data in self.sent.items():
            if key[1] not in self.reset:
                assert self.received.get((1 - key[0], key[1])) == data


TestTwoSides = TwoSides.TestCase
