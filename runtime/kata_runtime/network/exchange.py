"""What the network program can be asked for, beside `asking.detach`; and what its answers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kata_runtime.network.asking import Request, ask, ask_async, detach
from kata_runtime.network.model import Namespace
from kata_runtime.network.plan import Plan

__all__ = ["Attached", "Request", "ask", "ask_async", "attach", "detach", "dump"]


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
