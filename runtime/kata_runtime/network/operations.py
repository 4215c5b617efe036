"""The operations of the network program: one request, one answer. `program` describes both."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, fields

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
MAX_QUEUES = 250
"""The kernel passes at most 253 descriptors with one message (SCM_MAX_FD); two are the listeners."""


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
    from kata_runtime.network.kernel import Kernel

    with Kernel() as kernel:
        match request:
            case {"operation": "dump"}:
                return {"namespace": kernel.read().to_json()}, []
            case {"operation": "attach", "model": str(model), **options} if _are_options(options):
                return _attach(kernel, model, Wanted(**options))
            case {"operation": "detach"}:
                attachment.detach(kernel, RecordFile(RECORD))
                return {}, []
    raise NetworkError(
        f"the network program has no operation {request.get('operation')!r} with these arguments"
    )


def _attach(kernel: Kernel, model: str, wanted: Wanted) -> tuple[dict[str, Any], list[int]]:
    namespace = kernel.read()
    plan = planning.plan(namespace, model)
    if len(plan.attachments) * wanted.queues > MAX_QUEUES:
        raise NetworkError(
            f"cannot attach {len(plan.attachments)} interfaces with {wanted.queues} queues each: at most "
            f"{MAX_QUEUES} queues are possible; set network_queues lower"
        )
    attached = attachment.attach(kernel, namespace, plan, wanted, RecordFile(RECORD))
    answer = {
        "namespace": namespace.to_json(),
        "plan": {**asdict(plan), "warnings": [*plan.warnings, *attached.warnings]},
        "queues": [len(fds) for fds in attached.queues],
    }
    return answer, [fd for fds in (*attached.queues, attached.listeners) for fd in fds]


def _are_options(options: dict[str, Any]) -> bool:
    """Whether these are the fields of Wanted, of their types."""
    types = {field.name: type(field.default) for field in fields(Wanted)}
    return {name: type(value) for name, value in options.items()} == types


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
