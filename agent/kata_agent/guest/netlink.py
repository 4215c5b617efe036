"""Route netlink: messages and attributes as bytes, without I/O, and a socket that asks the kernel.

Sources: netlink(7), rtnetlink(7), linux/netlink.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

REQUEST = 0x001
ACK = 0x004
DUMP = 0x300
REPLACE = 0x100
CREATE = 0x400

_ERROR = 2
_DONE = 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without the flags "nested" and "network byte order"
_RECEIVE = 1 << 16


class Message(NamedTuple):
    """One netlink message: its type, flags and sequence number, and what follows its header."""

    type: int
    flags: int
    sequence: int
    body: bytes


def encode(message: Message) -> bytes:
    """The bytes of a message, addressed to the kernel."""
    header = _HEADER.pack(_HEADER.size + len(message.body), message.type, message.flags, message.sequence, 0)
    return header + _padded(message.body)


def decode(data: bytes) -> Iterator[Message]:
    """The messages in a datagram.

    Raises:
        ValueError: a length does not fit.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise ValueError(f"netlink message of {length} bytes in a datagram of {len(data)}")
        yield Message(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += _aligned(length)


def attributes(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    """The bytes of attributes, given as type and value."""
    return b"".join(
        _padded(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value) for kind, value in pairs
    )


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """The attributes by type; of repeated ones the last.

    Raises:
        ValueError: a length does not fit.
    """
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            raise ValueError(f"netlink attribute of {length} bytes where {len(data) - offset} are left")
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _padded(data: bytes) -> bytes:
    return data + bytes(_aligned(len(data)) - len(data))


class RouteSocket:
    """Asks the kernel's routing side; a context manager."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Make a change, and wait until it is made.

        Raises:
            OSError: the kernel refused.
        """
        for _ in self._ask(kind, REQUEST | ACK | flags, body):
            pass

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all objects of a kind."""
        return list(self._ask(kind, REQUEST | DUMP, body))

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._sock.send(encode(Message(kind, flags, self._sequence, body)))
        while True:
            for message in decode(self._sock.recv(_RECEIVE)):
                if message.sequence != self._sequence:
                    continue
                if message.type == _DONE:
                    return
                if message.type == _ERROR:
                    (code,) = struct.unpack_from("=i", message.body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield message.body
