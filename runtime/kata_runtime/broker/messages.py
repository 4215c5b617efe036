"""Messages between the shim and the broker: one JSON object per packet, with descriptors beside it.

A request is {"id": n, "op": name, ...arguments}. Its reply is {"id": n, "result": {...}} or {"id": n,
"error": {"kind": ..., "message": ..., "errno": ...}}. A notice has no id: {"exited": pid, "code" or "signal":
n}, {"violation": sentence} when the shim's filter refused a call, {"refused": pid, "sentence": sentence} when
a child's did, or {"failed": message} when the broker could not start or has a fault.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    Message = dict[str, Any]

MAX_BYTES = 64 * 1024
MAX_DESCRIPTORS = 64


class MessageError(ValueError):
    """A packet that is no message: too large, not a JSON object, or cut short."""


class DescriptorsLostError(MessageError):
    """This process had no room for the descriptors that came with a message. message: the rest of it."""

    errno = errno.EMFILE

    def __init__(self, message: Message) -> None:
        super().__init__(f"no room for the descriptors of a message: {os.strerror(self.errno)}")
        self.message = message


class EndOfStream(Exception):  # noqa: N818 - it is no error
    """The other side has closed the socket."""


def encode(message: Message) -> bytes:
    """Return the message as one packet. Raises MessageError when it is larger than MAX_BYTES."""
    packet = json.dumps(message, separators=(",", ":")).encode()
    if len(packet) > MAX_BYTES:
        raise MessageError(f"a message of {len(packet)} bytes is too long: at most {MAX_BYTES} are possible")
    return packet


def decode(packet: bytes) -> Message:
    """Return the object in a packet. Raises MessageError."""
    try:
        message = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"a packet is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise MessageError(f"a packet holds {type(message).__name__} in place of an object")
    return message


def send(channel: socket.socket, packet: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send one packet. Raises BlockingIOError when a non-blocking socket is full, and ConnectionError.

    flags: of send(2), such as MSG_DONTWAIT.
    """
    if fds:
        # Not socket.send_fds: it drops the flags that it is given.
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        channel.sendmsg([packet], passed, flags)
    else:
        channel.send(packet, flags)


def receive(channel: socket.socket, flags: int = 0) -> tuple[Message, list[int]]:
    """Receive one message and its descriptors, which then belong to the caller and are close-on-exec.

    flags: of recv(2), such as MSG_DONTWAIT.

    Raises:
        EndOfStream: the other side is gone.
        MessageError: what came is no message; its descriptors are closed.
        DescriptorsLostError: it is one, and this process may not open as many files.
        BlockingIOError: nothing is there, on a non-blocking socket, or none came in its time (SO_RCVTIMEO).
    """
    # Not socket.recv_fds: it drops the flags that it is given before Python 3.12.
    fds = array.array("i")
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * fds.itemsize)
    flags |= socket.MSG_CMSG_CLOEXEC
    try:
        packet, ancillary, flags, _ = channel.recvmsg(MAX_BYTES + 1, room, flags)
    except ConnectionResetError:
        # The other side exited without reading all; what it had sent before is still there.
        packet, ancillary, flags, _ = channel.recvmsg(MAX_BYTES + 1, room, flags)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not packet:
        close_all(fds)
        raise EndOfStream
    try:
        if flags & socket.MSG_TRUNC or len(packet) > MAX_BYTES:
            raise MessageError("a packet is too long")
        if flags & socket.MSG_CTRUNC:  # unix(7): also where they would exceed RLIMIT_NOFILE
            if len(fds) >= MAX_DESCRIPTORS:
                raise MessageError("a packet carries too many descriptors")
            raise DescriptorsLostError(decode(packet))
        return decode(packet), fds.tolist()
    except MessageError:
        close_all(fds)
        raise


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)
