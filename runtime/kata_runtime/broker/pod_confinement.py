"""The pod's processes are held to their rows before the guest runs: from /proc, by the broker.

Their filters are another matter, which the configuration decides: each driver has verified its VMM's by now,
and the shim's is verified when it is handed over. How many each has is recorded, so that fewer are noticed.

What was found is kept in RECORD in the sandbox's directory: whoever looks later, as `kata-ctl confinement`
does, sees from it whether something has become weaker since.
"""

from __future__ import annotations

import json
import os

from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.confinement import judging, mechanisms, reading
from kata_runtime.confinement.rows import BROKER, CHILD_OF, INIT, SHIM, UNSEALED_BROKER, row_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import Any

    from kata_runtime.confinement.facts import Place

RECORD = "confinement.json"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def verify(
    shim: int,
    init: int,
    children: Mapping[int, str],
    *,
    host: Place,
    user: int,
    outside: bool,
    landlock: bool,
    sealed: bool,
    controllers: Collection[str],
    required: Sequence[str],
) -> dict[str, Any]:
    """Hold every process of a pod to its row; returns what is to be recorded.

    host: where the runtime was started. shim, init: process ids; init is 0 where the pod has none. children:
    roles by process id. user: the pod's. outside: whether its VMM is in the host's network. landlock: whether
    the shim has found that it is denied to open a file. sealed: whether it will have a filter. controllers:
    those of the pod's cgroup. required: names of mechanisms that must be there.

    Raises:
        RequestRefusedError: something is weaker than its row says, or lacks although it is required.
    """
    lacking = mechanisms.find_lacking(landlock=landlock, controllers=controllers, sealed=sealed)
    if (refused := mechanisms.refusal(lacking, required)) is not None:
        raise RequestRefusedError(refused)
    filters: dict[str, int] = {}
    for pid, role in _processes(shim, init, children):
        try:
            found = reading.read(pid)
        except ProcessLookupError:
            continue  # whoever has started it is told that it has exited
        row = UNSEALED_BROKER if role == BROKER else row_of(role)  # it is sealed next, and verified then
        for weakness in judging.find_weaknesses(row, found, host, user=user, outside=outside):
            raise RequestRefusedError(
                f"the pod is not started: {role} (process {pid}) {weakness.reason}; "
                "kata-ctl confinement shows what each process must be"
            )
        if role != SHIM:
            filters[role] = min(found.filters, filters.get(role, found.filters))
    inherited = filters[BROKER]
    return {
        "user": user,
        "outside": outside,
        "landlock": landlock,
        "sealed": sealed,
        "host": {"namespaces": dict(host.namespaces), "root": list(host.root)},
        "inherited": inherited,
        "filters": filters,
        "lacking": lacking,
    }


def _processes(shim: int, init: int, children: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    yield os.getpid(), BROKER
    yield shim, SHIM
    if init:
        yield init, INIT
    for pid, role in children.items():
        yield pid, role
        for descendant in reading.descendants(pid):
            yield descendant, role + CHILD_OF


def record(directory: int, found: dict[str, Any]) -> None:
    """Keep what was found, once. directory: descriptor of the sandbox's. Raises OSError."""
    file = os.open(RECORD, _WRITE, 0o600, dir_fd=directory)
    try:
        os.write(file, json.dumps(found).encode())
    finally:
        os.close(file)
