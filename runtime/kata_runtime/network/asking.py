"""Asking the network program: a request, and the answer with its descriptors. See `program`.

A request is a value; `ask` makes it and waits, and `ask_async` lets others go on meanwhile. The broker loads
this for the end of its pod, and nothing else of the network: it is small.
"""

from __future__ import annotations

import array
import json
import os
import socket

from kata_runtime.network.errors import NetworkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, TypeVar

    T = TypeVar("T")

    class _Typed(Generic[T]):
        """Carries the type of the result for the type checker."""
else:
    T = None

    class _Typed:
        def __class_getitem__(cls, _):
            return cls


MAX_ANSWER = 8 << 20
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD
_PIECE = 1 << 16


class Request(_Typed[T]):
    """What the program is asked for. take: makes the result of an answer and its descriptors."""

    __slots__ = ("fields", "take")

    def __init__(self, fields: dict[str, Any], take: Callable[[dict[str, Any], list[int]], T]) -> None:
        self.fields = fields
        self.take = take


def detach() -> Request[None]:
    """Take away what the record names."""
    return Request({"operation": "detach"}, lambda _answer, _fds: None)


class _Answer:
    """An answer as it comes in."""

    def __init__(self) -> None:
        self._data = b""
        self._fds = array.array("i")

    def receive(self, channel: socket.socket) -> bool:
        """Take what is there; false at the end. Raises OSError."""
        room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * self._fds.itemsize)
        piece, ancillary, _, _ = channel.recvmsg(_PIECE, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds.frombytes(rights[: len(rights) - len(rights) % self._fds.itemsize])
        self._data += piece
        return bool(piece) and len(self._data) < MAX_ANSWER

    def result(self, request: Request[T]) -> T:
        """What the whole answer means. Raises NetworkError."""
        try:
            answer = json.loads(self._data)
        except ValueError:
            answer = {"error": "the network program exited without an answer"}
        if "error" in answer:
            self.close()
            raise NetworkError(answer["error"])
        return request.take(answer, self._fds.tolist())

    def close(self) -> None:
        """Close the descriptors that have come."""
        for fd in self._fds:
            os.close(fd)


def ask(channel: socket.socket, request: Request[T]) -> T:
    """Make a request over a blocking socket. Raises NetworkError."""
    answer = _Answer()
    try:
        channel.sendall(json.dumps(request.fields).encode())
        channel.shutdown(socket.SHUT_WR)
        while answer.receive(channel):
            pass
    except OSError as error:
        answer.close()
        raise NetworkError(f"cannot speak to the network program: {error.strerror}") from None
    return answer.result(request)


async def ask_async(channel: socket.socket, request: Request[T]) -> T:
    """As `ask`, over a socket that does not block, without holding up the event loop. Raises NetworkError."""
    import anyio

    answer = _Answer()
    try:
        channel.sendall(json.dumps(request.fields).encode())  # it fits into the socket's buffer
        channel.shutdown(socket.SHUT_WR)
        more = True
        while more:
            await anyio.wait_readable(channel)
            more = answer.receive(channel)
    except OSError as error:
        answer.close()
        raise NetworkError(f"cannot speak to the network program: {error.strerror}") from None
    except BaseException:
        answer.close()
        raise
    return answer.result(request)
