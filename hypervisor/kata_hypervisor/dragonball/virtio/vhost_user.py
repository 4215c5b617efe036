"""The vhost-user protocol, the side that owns the guest's memory.

Source: QEMU's docs/interop/vhost-user.rst. `Message` and `parse_header` know bytes only; `Backend` exchanges
them over a unix socket. What a backend answers is hostile: it serves the guest's own requests.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from kata_hypervisor.dragonball.memory import GuestMemory

HEADER = struct.Struct("<III")
"""request, flags, bytes of the payload"""
VERSION_MASK, VERSION, REPLY, NEED_REPLY = 0x3, 0x1, 1 << 2, 1 << 3

PROTOCOL_FEATURES = 1 << 30
"""Among the features: the backend knows protocol features, and its rings start disabled."""
REPLY_ACK = 1 << 3
"""Protocol feature: a request may ask for an answer."""


class Request(IntEnum):
    """Requests of the front-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18


class VhostUserError(Exception):
    """The backend has hung up, is silent, refuses, or does not speak the protocol."""


class Message(NamedTuple):
    """One request with its payload and descriptors."""

    request: Request
    payload: bytes = b""
    descriptors: tuple[int, ...] = ()

    def encode(self, need_reply: bool = False) -> bytes:
        """The bytes of it."""
        flags = VERSION | (NEED_REPLY if need_reply else 0)
        return HEADER.pack(self.request, flags, len(self.payload)) + self.payload


def parse_header(header: bytes, request: Request, size: int) -> None:
    """Check the header of an answer, whose payload must have `size` bytes.

    Raises:
        VhostUserError: it is not the answer to this request.
    """
    kind, flags, length = HEADER.unpack(header)
    if kind != request or flags & (VERSION_MASK | REPLY) != VERSION | REPLY:
        raise VhostUserError(f"an answer of kind {kind} with flags {flags:#x} came to {request.name}")
    if length != size:
        raise VhostUserError(f"the answer to {request.name} has {length} bytes, not {size}")


def number(request: Request, value: int) -> Message:
    """A request with a 64-bit number."""
    return Message(request, struct.pack("<Q", value))


def ring_state(request: Request, index: int, value: int) -> Message:
    """A request with struct vhost_vring_state."""
    return Message(request, struct.pack("<II", index, value))


def ring_descriptor(request: Request, index: int, descriptor: int) -> Message:
    """A request that gives a ring a descriptor."""
    return Message(request, struct.pack("<Q", index), (descriptor,))


def ring_addresses(index: int, table: int, available: int, used: int) -> Message:
    """A request with struct vhost_vring_addr, in addresses of this process."""
    return Message(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, table, used, available, 0))


def memory_table(memory: GuestMemory) -> Message:
    """A request that gives the backend the guest's memory."""
    regions = [
        struct.pack("<QQQQ", region.start, region.size, memory.address + region.offset, region.offset)
        for region in memory.regions
    ]
    head = struct.pack("<II", len(regions), 0)
    return Message(Request.SET_MEM_TABLE, head + b"".join(regions), (memory.descriptor,) * len(regions))


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring for the backend.

    addresses: of descriptors, available and used ring, in this process. position: as in QueueSetup.
    """

    index: int
    size: int
    addresses: tuple[int, int, int]
    notify_fd: int
    call: int
    position: int = 0


class Backend:
    """A connection to a backend; blocking, as long as the socket's own deadlines say.

    sock: owned from here on.

    Raises:
        VhostUserError: from every method but `close`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._acknowledges = False
        sock.setblocking(True)

    def negotiate(self) -> int:
        """Take the backend; return the features of its device."""
        self.send(Message(Request.SET_OWNER))
        features = self.ask(Message(Request.GET_FEATURES))
        if features & PROTOCOL_FEATURES:
            offered = self.ask(Message(Request.GET_PROTOCOL_FEATURES))
            self.send(number(Request.SET_PROTOCOL_FEATURES, offered & REPLY_ACK))
            self._acknowledges = bool(offered & REPLY_ACK)
        return features

    def send(self, message: Message) -> None:
        """Send a request; where the backend can acknowledge, wait until it has carried it out."""
        self._transmit(message, self._acknowledges)
        if self._acknowledges and self._receive(message.request, "<Q") != 0:
            raise VhostUserError(f"the backend refuses {message.request.name}")

    def ask(self, message: Message) -> int:
        """Send a request; return the number that it is answered with."""
        self._transmit(message, False)
        return self._receive(message.request, "<Q")

    def stop_ring(self, index: int) -> None:
        """Stop a ring; the backend touches it no more once this returns."""
        self._transmit(ring_state(Request.GET_VRING_BASE, index, 0), False)
        self._receive(Request.GET_VRING_BASE, "<4xI")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _transmit(self, message: Message, need_reply: bool) -> None:
        data = message.encode(need_reply)
        try:
            sent = socket.send_fds(self._socket, [data], message.descriptors)
        except OSError as error:
            raise VhostUserError(f"cannot send {message.request.name}: {error.strerror}") from error
        if sent != len(data):
            raise VhostUserError(f"cannot send {message.request.name}: the connection is full")

    def _receive(self, request: Request, code: str) -> int:
        size = struct.calcsize(code)
        parse_header(self._read(HEADER.size, request), request, size)
        (value,) = struct.unpack(code, self._read(size, request))
        return int(value)

    def _read(self, size: int, request: Request) -> bytes:
        content = b""
        while len(content) < size:
            try:
                part = self._socket.recv(size - len(content))
            except OSError as error:
                raise VhostUserError(f"no answer to {request.name}: {error.strerror}") from error
            if not part:
                raise VhostUserError(f"no answer to {request.name}: the backend has hung up")
            content += part
        return content


def start_rings(backend: Backend, rings: Sequence[Ring]) -> None:
    """Let the backend serve rings. Raises VhostUserError."""
    for ring in rings:
        backend.send(ring_state(Request.SET_VRING_NUM, ring.index, ring.size))
        backend.send(ring_state(Request.SET_VRING_BASE, ring.index, ring.position))
        backend.send(ring_addresses(ring.index, *ring.addresses))
        backend.send(ring_descriptor(Request.SET_VRING_CALL, ring.index, ring.call))
        backend.send(ring_descriptor(Request.SET_VRING_KICK, ring.index, ring.notify_fd))
