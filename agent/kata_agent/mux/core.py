"""The multiplexer's protocol, without I/O: bytes in, events out.

A frame is a header of nine bytes, big endian (type u8; stream id u32; payload length u32), and a payload:

    HELLO   stream 0; magic and version: the first frame of either side
    OPEN    host only; port u32. Stream ids only grow; the id is the peer's port number in the guest
    ACCEPT  guest only, or REFUSE: the answer to OPEN
    DATA    1 byte to 64 KiB, never more than the credit that is left
    WINDOW  credit u32: so many bytes more may be sent; each direction begins with 256 KiB
    EOF     this side sends no more; the stream ends when both have sent it
    RESET   the stream ends at once, in both directions

Frames for a stream that has ended are ignored, for they crossed its end. Whatever else does not fit is a
ProtocolError, and the end of all streams. Memory is bounded: per stream by the credit that was granted, and
for answers by MAX_OUTPUT.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

WINDOW = 256 << 10
MAX_DATA = 64 << 10
MAX_STREAMS = 1024
MAX_OUTPUT = 1 << 20

_HEADER = struct.Struct(">BII")
_NUMBER = struct.Struct(">I")
_HELLO = b"katamux\x01"
_LAST_ID = 0xFFFFFFFF


class ProtocolError(ValueError):
    """The peer does not keep the multiplexer's protocol; every stream is lost."""


class FrameType(enum.IntEnum):
    """What a frame, or the event made of it, says."""

    HELLO = 1
    OPEN = 2
    ACCEPT = 3
    REFUSE = 4
    DATA = 5
    WINDOW = 6
    EOF = 7
    RESET = 8


_LENGTHS = {
    FrameType.HELLO: (len(_HELLO), len(_HELLO)),
    FrameType.OPEN: (4, 4),
    FrameType.ACCEPT: (0, 0),
    FrameType.REFUSE: (0, 0),
    FrameType.DATA: (1, MAX_DATA),
    FrameType.WINDOW: (4, 4),
    FrameType.EOF: (0, 0),
    FrameType.RESET: (0, 0),
}


class Event(NamedTuple):
    """A frame that was checked. data: of DATA. number: the port of OPEN, the credit of WINDOW."""

    type: FrameType
    stream: int
    data: bytes = b""
    number: int = 0


class _Stream:
    """One stream's state. credit: bytes we may send; allowance: bytes the peer may send; consumed: bytes
    that were taken from the stream since credit was last granted."""

    __slots__ = ("allowance", "consumed", "credit", "received_eof", "sent_eof", "settled")

    def __init__(self) -> None:
        self.settled = False
        self.credit = 0
        self.allowance = 0
        self.consumed = 0
        self.sent_eof = False
        self.received_eof = False

    def settle(self) -> None:
        self.settled = True
        self.credit = self.allowance = WINDOW


class Mux:
    """One side of the multiplexer.

    host: whether this side opens the streams.
    output: what has to be written to the peer; the caller removes what was written from its front.
    ready: whether the peer has sent HELLO.
    """

    def __init__(self, *, host: bool) -> None:
        self.ready = False
        self.output = bytearray()
        self._host = host
        self._streams: dict[int, _Stream] = {}
        self._last_id = 0
        self._input = bytearray()
        self._write(FrameType.HELLO, 0, _HELLO)

    # What this side does.

    def open(self, port: int) -> int:
        """Ask for a stream to a port of the guest; ACCEPT, REFUSE or RESET answers. Returns the stream's id.

        Raises:
            OSError: all ids were used, or too many streams are open.
        """
        if len(self._streams) >= MAX_STREAMS or self._last_id == _LAST_ID:
            raise OSError(f"cannot open a stream to guest port {port}: too many streams over the serial port")
        self._last_id += 1
        self._streams[self._last_id] = _Stream()
        self._write(FrameType.OPEN, self._last_id, _NUMBER.pack(port))
        return self._last_id

    def accept(self, stream: int) -> None:
        """Take the stream that an OPEN event offered."""
        self._streams[stream].settle()
        self._write(FrameType.ACCEPT, stream)

    def refuse(self, stream: int) -> None:
        """Turn down the stream that an OPEN event offered."""
        del self._streams[stream]
        self._write(FrameType.REFUSE, stream)

    def credit(self, stream: int) -> int:
        """How many bytes may be sent now; 0 for a stream that has ended."""
        state = self._streams.get(stream)
        return state.credit if state else 0

    def send(self, stream: int, data: bytes) -> None:
        """Send data, at most `credit` and MAX_DATA bytes of it."""
        state = self._streams[stream]
        assert 0 < len(data) <= min(state.credit, MAX_DATA)
        assert not state.sent_eof
        state.credit -= len(data)
        self._write(FrameType.DATA, stream, data)

    def finish(self, stream: int) -> None:
        """Say that this side sends no more."""
        state = self._streams[stream]
        state.sent_eof = True
        self._write(FrameType.EOF, stream)
        if state.received_eof:
            del self._streams[stream]

    def reset(self, stream: int) -> None:
        """End a stream at once; nothing happens when it has ended."""
        if self._streams.pop(stream, None):
            self._write(FrameType.RESET, stream)

    def consume(self, stream: int, count: int) -> None:
        """Say that data of a stream left this side's buffers, so that the peer may send more."""
        state = self._streams.get(stream)
        if state is None or state.received_eof:
            return
        state.consumed += count
        if state.consumed >= WINDOW // 2:
            self._write(FrameType.WINDOW, stream, _NUMBER.pack(state.consumed))
            state.allowance += state.consumed
            state.consumed = 0

    # What the peer did.

    def receive(self, data: bytes) -> Iterator[Event]:
        """Take what was read; yield what it says, each event before the next frame is looked at.

        Raises:
            ProtocolError: the peer broke the protocol, or does not read what it asked for.
        """
        self._input += data
        while (event := self._next()) is not None:
            if self._judge(event):
                yield event
            if len(self.output) > MAX_OUTPUT:
                raise ProtocolError("the peer of the serial port does not read the answers to what it sends")

    def _next(self) -> Event | None:
        if len(self._input) < _HEADER.size:
            return None
        number, stream, length = _HEADER.unpack_from(self._input)
        try:
            kind = FrameType(number)
        except ValueError:
            raise ProtocolError(f"unknown frame type {number} on the serial port") from None
        least, most = _LENGTHS[kind]
        if not least <= length <= most:
            raise ProtocolError(f"{kind.name} frame of {length} bytes on the serial port")
        end = _HEADER.size + length
        if len(self._input) < end:
            return None
        with memoryview(self._input) as view:
            payload = bytes(view[_HEADER.size : end])
        del self._input[:end]
        if kind in (FrameType.OPEN, FrameType.WINDOW):
            return Event(kind, stream, number=_NUMBER.unpack(payload)[0])
        return Event(kind, stream, payload)

    def _judge(self, event: Event) -> bool:
        """Apply an event to the state; whether it is news."""
        if event.type == FrameType.HELLO or not self.ready:
            return self._greet(event)
        if event.type == FrameType.OPEN:
            return self._offered(event.stream)
        state = self._streams.get(event.stream)
        if state is None:
            if not 0 < event.stream <= self._last_id:
                raise ProtocolError(f"{event.type.name} frame for stream {event.stream}, which never was")
            return False
        if event.type == FrameType.RESET:
            del self._streams[event.stream]
        elif event.type in (FrameType.ACCEPT, FrameType.REFUSE):
            self._answered(event, state)
        elif not state.settled:
            raise ProtocolError(f"{event.type.name} frame for stream {event.stream}, which is not open yet")
        else:
            self._flowed(event, state)
        return True

    def _greet(self, event: Event) -> bool:
        if self.ready or event.type != FrameType.HELLO or event.stream or event.data != _HELLO:
            if self.ready:
                raise ProtocolError("second HELLO on the serial port: its other end was restarted")
            raise ProtocolError(
                "the serial port does not begin with our HELLO: agent and runtime do not match"
            )
        self.ready = True
        return True

    def _offered(self, stream: int) -> bool:
        if self._host or stream <= self._last_id:
            raise ProtocolError(f"OPEN frame for stream {stream}, which is not the host's next")
        self._last_id = stream
        self._streams[stream] = _Stream()
        if len(self._streams) > MAX_STREAMS:
            self.refuse(stream)
            return False
        return True

    def _answered(self, event: Event, state: _Stream) -> None:
        if not self._host or state.settled:
            raise ProtocolError(f"{event.type.name} frame for stream {event.stream}, which needs no answer")
        if event.type == FrameType.ACCEPT:
            state.settle()
        else:
            del self._streams[event.stream]

    def _flowed(self, event: Event, state: _Stream) -> None:
        """DATA, WINDOW or EOF on an open stream."""
        if event.type == FrameType.WINDOW:
            state.credit += event.number
            if not 0 < event.number <= state.credit <= WINDOW:
                raise ProtocolError(f"stream {event.stream} was granted more than its window")
        elif state.received_eof:
            raise ProtocolError(f"{event.type.name} frame for stream {event.stream} after its EOF")
        elif event.type == FrameType.DATA:
            state.allowance -= len(event.data)
            if state.allowance < 0:
                raise ProtocolError(f"more data on stream {event.stream} than its window allows")
        else:
            state.received_eof = True
            if state.sent_eof:
                del self._streams[event.stream]

    def _write(self, kind: FrameType, stream: int, payload: bytes = b"") -> None:
        self.output += _HEADER.pack(kind, stream, len(payload))
        self.output += payload
