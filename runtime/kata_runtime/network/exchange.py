"""Asking the network program: a request, and the answer with its descriptors. See `program`.

A request is a value; `ask` makes it and waits, and `ask_async` lets others go on meanwhile.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import Namespace
from kata_runtime.network.plan import Plan

T = TypeVar("T")

MAX_ANSWER = 8 << 20
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Attached:
    """What came of "attach". namespace: as it was before.

    queues: for each attachment of the plan the descriptors of its queues, none for a device that the VMM
    opens by its name. listeners: of redirected connections, see `forwarding`; none where that was not wanted
    or cannot be. All are the caller's to close.
    """

    namespace: Namespace
    plan: Plan
    queues: tuple[tuple[int, ...], ...]
    listeners: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """What the program is asked for. take: makes the result of an answer and its descriptors."""

    fields: dict[str, Any]
    take: Callable[[dict[str, Any], list[int]], T]


def dump() -> Request[Namespace]:
    """What the program's namespace holds."""
    return Request({"operation": "dump"}, lambda answer, _: Namespace.from_json(answer["namespace"]))


def attach(
    model: str,
    *,
    queues: int = 1,
    header: bool = True,
    named: bool = False,
    owner: int = 0,
    forward: bool = False,
    spoof_protection: bool = True,
) -> Request[Attached]:
    """Attach all of the namespace; where that cannot be, it is as it was.

    model: one of `plan`. The others: see `attachment.Wanted`.
    """
    options = {
        "queues": queues,
        "header": header,
        "named": named,
        "owner": owner,
        "forward": forward,
        "spoof_protection": spoof_protection,
    }
    return Request({"operation": "attach", "model": model, **options}, _attached)


def _attached(answer: dict[str, Any], fds: list[int]) -> Attached:
    left = iter(fds)
    return Attached(
        namespace=Namespace.from_json(answer["namespace"]),
        plan=Plan.from_json(answer["plan"]),
        queues=tuple(tuple(next(left) for _ in range(count)) for count in answer["queues"]),
        listeners=tuple(left),
    )


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
