"""A netlink socket for one namespace, for messages of pyroute2 or of bytes.

Sources: netlink(7), linux/netlink.h.
"""

from __future__ import annotations

import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from kata_runtime.network.library import nlmsg

REQUEST, ACK, DUMP = 0x001, 0x004, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400

_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_ERROR, _DONE = 2, 3
_ACK_TLVS, _ERROR_TEXT = 0x200, 1  # NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE = 1 << 16


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute's bytes, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length & 3)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in these bytes, without the flags of their types; ends where a length does not fit."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


class NetlinkSocket:
    """Asks the kernel, and raises OSError with its words where it refuses. family: NETLINK_*."""

    def __init__(self, family: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        self._sequence = 0
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)

    def close(self) -> None:
        """Close it; idempotent."""
        self._socket.close()

    def dump(self, kind: int, message: nlmsg, **fields: Any) -> list[nlmsg]:
        """All objects of a kind. kind: RTM_GET*; message: of its class, empty; fields: of the request."""
        # rtmsg is of IPv4 where it does not say otherwise.
        request = self._encode(kind, REQUEST | DUMP, message, {"family": socket.AF_UNSPEC, **fields})
        return [_decode(type(message), body) for body in self._ask(request)]

    def get(self, kind: int, message: nlmsg, **fields: Any) -> nlmsg | None:
        """One object; None where the kernel answers with nothing."""
        request = self._encode(kind, REQUEST | ACK, message, fields)
        found = [_decode(type(message), body) for body in self._ask(request)]
        return found[0] if found else None

    def change(self, kind: int, flags: int, message: nlmsg, /, **fields: Any) -> None:
        """Make a change, and wait until it is made. flags: CREATE and the like."""
        for _ in self._ask(self._encode(kind, REQUEST | ACK | flags, message, fields)):
            pass

    def batch(self, bodies: list[tuple[int, int, bytes]]) -> None:
        """Send messages in one piece, as type, flags and body, and wait for the answers to those with ACK."""
        data = b""
        waited = 0
        for kind, flags, body in bodies:
            self._sequence += 1
            waited += bool(flags & ACK)
            data += self._header(kind, REQUEST | flags, len(body)) + body
        self._socket.send(data)
        for _ in range(waited):
            self._receive_answer()

    def _header(self, kind: int, flags: int, length: int) -> bytes:
        return _HEADER.pack(_HEADER.size + length, kind, flags, self._sequence, 0)

    def _encode(self, kind: int, flags: int, message: nlmsg, fields: dict[str, Any]) -> bytes:
        self._sequence += 1
        for name, value in fields.items():
            message[name] = value
        message["header"].update(type=kind, flags=flags, sequence_number=self._sequence, pid=0)
        message.encode()
        return bytes(message.data)

    def _ask(self, request: bytes) -> Iterator[bytes]:
        """Send a request; yield the whole messages of the answer."""
        self._socket.send(request)
        while True:
            for kind, flags, sequence, message in _messages(self._socket.recv(_RECEIVE)):
                if sequence != self._sequence:
                    continue
                if kind in (_DONE, _ERROR):
                    _raise_for(message, flags)
                    return
                yield message

    def _receive_answer(self) -> None:
        for kind, flags, _, message in _messages(self._socket.recv(_RECEIVE)):
            if kind == _ERROR:
                _raise_for(message, flags)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number, and all bytes, of the messages in a datagram of the kernel's."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset : offset + length]
        offset += (length + 3) & ~3


def _raise_for(message: bytes, flags: int) -> None:
    """Raise OSError for an answer that is an error."""
    (code,) = struct.unpack_from("=i", message, _HEADER.size)
    if not code:
        return
    text = os.strerror(-code)
    if flags & _ACK_TLVS:
        # After the error number comes the header of the request, without its body (NETLINK_CAP_ACK).
        for kind, value in attributes(message[2 * _HEADER.size + 4 :]):
            if kind == _ERROR_TEXT:
                text = value.rstrip(b"\0").decode(errors="replace")
    raise OSError(-code, text)


def _decode(kind: type[nlmsg], message: bytes) -> nlmsg:
    made = kind(message)
    made.decode()
    return made
