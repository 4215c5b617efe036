"""The frames of ttrpc, without I/O: bytes in, frames out.

A frame is a header of ten bytes (payload length u32, stream id u32, both big endian; type u8; flags u8) and
a payload of at most 4 MiB. Clients use odd stream ids that only grow. Source: the ttrpc protocol description
(containerd/ttrpc, PROTOCOL.md).
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

MAX_PAYLOAD = 4 << 20
_HEADER = struct.Struct(">IIBB")
HEADER_SIZE = _HEADER.size


class FrameType(enum.IntEnum):
    """What a frame carries."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(enum.IntFlag):
    """Stream state that a frame announces; a unary request has the first, or from older clients none."""

    REMOTE_CLOSED = 1
    REMOTE_OPEN = 2
    NO_DATA = 4


class ProtocolError(ValueError):
    """The peer sent something that is not ttrpc; the connection cannot go on."""


class Frame(NamedTuple):
    """One frame. `oversized` is the announced length of a payload over the limit, which was dropped."""

    stream_id: int
    type: int
    flags: int
    payload: bytes
    oversized: int = 0


def encode(stream_id: int, frame_type: int, payload: bytes, flags: int = 0) -> bytes:
    """Bytes of one frame.

    Raises:
        ProtocolError: the payload is over the limit of 4 MiB.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a ttrpc payload of {len(payload)} bytes is over the limit of {MAX_PAYLOAD}")
    return _HEADER.pack(len(payload), stream_id, frame_type, flags) + payload


class FrameDecoder:
    """Cuts a byte stream into frames.

    A payload over the limit is skipped as it arrives, never held, and reported by its frame's `oversized`, so
    that one bad message fails one call and not the connection.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip: tuple[Frame, int] | None = None

    @property
    def pending(self) -> bool:
        """Whether an incomplete frame is held: an end of file now would lose it."""
        return bool(self._buffer) or self._skip is not None

    def feed(self, data: bytes) -> list[Frame]:
        """Take what was read; return the frames that are complete now."""
        self._buffer += data
        frames: list[Frame] = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        if self._skip is not None:
            return self._finish_skip()
        if len(self._buffer) < HEADER_SIZE:
            return None
        length, stream_id, frame_type, flags = _HEADER.unpack_from(self._buffer)
        if length > MAX_PAYLOAD:
            del self._buffer[:HEADER_SIZE]
            self._skip = (Frame(stream_id, frame_type, flags, b"", length), length)
            return self._finish_skip()
        end = HEADER_SIZE + length
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[HEADER_SIZE:end])
        del self._buffer[:end]
        return Frame(stream_id, frame_type, flags, payload)

    def _finish_skip(self) -> Frame | None:
        assert self._skip is not None
        frame, left = self._skip
        dropped = min(left, len(self._buffer))
        del self._buffer[:dropped]
        if left > dropped:
            self._skip = (frame, left - dropped)
            return None
        self._skip = None
        return frame
