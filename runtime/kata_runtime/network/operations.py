"""The operations of the network program: one request, one answer. `program` describes both."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict

from kata_runtime.network import attachment, namespaces
from kata_runtime.network import plan as planning
from kata_runtime.network.attachment import Wanted
from kata_runtime.network.command import CHANNEL, NAMESPACE, RECORD
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.record import RecordFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.network.kernel import Kernel

MAX_REQUEST = 64 * 1024
MAX_DESCRIPTORS = 250
"""The kernel passes at most 253 with one message (SCM_MAX_FD)."""


def main() -> int:
    """Answer one request; see the module."""
    with socket.socket(fileno=CHANNEL) as channel:
        fds: list[int] = []
        try:
            namespaces.enter(NAMESPACE)
            answer, fds = _perform(_receive(channel))
            status = 0
        except (NetworkError, OSError) as error:
            answer, status = {"error": str(error)}, 1
        _send(channel, answer, fds)
    return status


def _perform(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    # Later than the module: it takes 0.1 s, during which the request may come.
    from kata_runtime.network.kernel import Kernel

    with Kernel() as kernel:
        match request:
            case {"operation": "dump"}:
                return {"namespace": kernel.read().to_json()}, []
            case {
                "operation": "attach",
                "model": str(model),
                "queues": int(),
                "header": bool(),
                "named": bool(),
            }:
                wanted = Wanted(request["queues"], request["header"], request["named"])
                return _attach(kernel, model, wanted)
            case {"operation": "detach"}:
                attachment.detach(kernel, RecordFile(RECORD))
                return {}, []
    raise NetworkError(
        f"the network program has no operation {request.get('operation')!r} with these arguments"
    )


def _attach(kernel: Kernel, model: str, wanted: Wanted) -> tuple[dict[str, Any], list[int]]:
    namespace = kernel.read()
    plan = planning.plan(namespace, model)
    if len(plan.attachments) * wanted.queues > MAX_DESCRIPTORS:
        raise NetworkError(
            f"cannot attach {len(plan.attachments)} interfaces with {wanted.queues} queues each: at most "
            f"{MAX_DESCRIPTORS} queues are possible; set network_queues lower"
        )
    opened = attachment.attach(kernel, namespace, plan, wanted, RecordFile(RECORD))
    answer = {
        "namespace": namespace.to_json(),
        "plan": asdict(plan),
        "descriptors": [len(fds) for fds in opened],
    }
    return answer, [fd for fds in opened for fd in fds]


def _receive(channel: socket.socket) -> dict[str, Any]:
    data = b""
    while piece := channel.recv(MAX_REQUEST):
        data += piece
        if len(data) > MAX_REQUEST:
            raise NetworkError(f"a request is longer than {MAX_REQUEST} bytes")
    request = json.loads(data)
    if not isinstance(request, dict):
        raise NetworkError("a request is no JSON object")
    return request


def _send(channel: socket.socket, answer: dict[str, Any], fds: list[int]) -> None:
    data = json.dumps(answer).encode()
    sent = socket.send_fds(channel, [data], fds) if fds else channel.send(data)
    channel.sendall(data[sent:])
