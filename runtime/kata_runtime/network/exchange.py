"""Asking the network program: a request, and the answer with its descriptors. See `program`."""

from __future__ import annotations

import array
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import Namespace
from kata_runtime.network.plan import Plan

MAX_ANSWER = 8 << 20
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD


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


def dump(channel: socket.socket) -> Namespace:
    """What the program's namespace holds. Raises NetworkError."""
    answer, _ = _ask(channel, {"operation": "dump"})
    return Namespace.from_json(answer["namespace"])


def attach(
    channel: socket.socket,
    model: str,
    *,
    queues: int = 1,
    header: bool = True,
    named: bool = False,
    forward: bool = False,
) -> Attached:
    """Attach all of the namespace.

    model: one of `plan`. The others: see `attachment.Wanted`.

    Raises:
        NetworkError: it could not be attached, and the namespace is as it was.
    """
    options = {"queues": queues, "header": header, "named": named, "forward": forward}
    answer, fds = _ask(channel, {"operation": "attach", "model": model, **options})
    left = iter(fds)
    return Attached(
        namespace=Namespace.from_json(answer["namespace"]),
        plan=Plan.from_json(answer["plan"]),
        queues=tuple(tuple(next(left) for _ in range(count)) for count in answer["queues"]),
        listeners=tuple(left),
    )


def detach(channel: socket.socket) -> None:
    """Take away what the record names. Raises NetworkError."""
    _ask(channel, {"operation": "detach"})


def _ask(channel: socket.socket, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    try:
        channel.sendall(json.dumps(request).encode())
        channel.shutdown(socket.SHUT_WR)
        data, fds = _receive(channel)
    except OSError as error:
        raise NetworkError(f"cannot speak to the network program: {error.strerror}") from None
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"error": "the network program exited without an answer"}
    if "error" in answer:
        for fd in fds:
            os.close(fd)
        raise NetworkError(answer["error"])
    return answer, fds


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    data = b""
    fds = array.array("i")
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * fds.itemsize)
    while len(data) < MAX_ANSWER:
        piece, ancillary, _, _ = channel.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
        if not piece:
            break
        data += piece
    return data, fds.tolist()
