"""The sandboxes that run on this host, as their brokers recorded them. For tools, not for the shim."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kata_runtime.broker.processes import is_alive
from kata_runtime.broker.rollback import NAME
from kata_runtime.broker.supervisor import RECORD
from kata_runtime.confinement.reading import descendants
from kata_runtime.ctl.errors import CommandError
from kata_runtime.identity import STATE_ROOT


@dataclass(frozen=True, slots=True)
class RecordedProcess:
    """A living process of a sandbox. name: "shim", "broker", or the role of a child such as "qemu".

    A process that a child has started has its child's name, and `by_child`.
    """

    name: str
    pid: int
    by_child: bool = False


@dataclass(frozen=True, slots=True)
class RecordedSandbox:
    """A sandbox with at least one living process. socket: the path where its shim serves."""

    id: str
    namespace: str
    directory: str
    socket: str
    processes: tuple[RecordedProcess, ...]


def running_sandboxes(root: str = STATE_ROOT) -> Iterator[RecordedSandbox]:
    """All sandboxes of this host, in the order of their directories' names."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    for name in names:
        sandbox = _read(os.path.join(root, name))
        if sandbox is not None and sandbox.processes:
            yield sandbox


def chosen(prefix: str) -> list[RecordedSandbox]:
    """The running sandboxes whose ids begin so. Raises CommandError: there is none."""
    found = [sandbox for sandbox in running_sandboxes() if sandbox.id.startswith(prefix)]
    if not found and prefix:
        raise CommandError(
            f"no running sandbox has an id that starts with {prefix!r} (kata-ctl seccomp status shows all)"
        )
    if not found:
        raise CommandError("no sandbox is running on this host")
    return found


def only(prefix: str) -> RecordedSandbox:
    """The one running sandbox whose id begins so. Raises CommandError: there is none, or several."""
    first, *others = chosen(prefix)
    if others:
        ids = ", ".join(sandbox.id for sandbox in (first, *others))
        raise CommandError(f"several running sandboxes have an id that starts with {prefix!r}: {ids}")
    return first


def read_seal(directory: str) -> dict[str, Any] | None:
    """What a broker has recorded of its shim's seal: "mode", "policy", "calls"; None where there is none."""
    try:
        with open(os.path.join(directory, RECORD), encoding="utf-8") as file:
            seal = json.load(file)
    except (OSError, ValueError):
        return None
    return seal if isinstance(seal, dict) else None


def _read(directory: str) -> RecordedSandbox | None:
    try:
        with open(os.path.join(directory, NAME), encoding="utf-8") as file:
            records = [_parse(line) for line in file]
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not records or "sandbox" not in records[0]:
        return None
    header = records[0]
    done = {record["done"] for record in records if "done" in record}
    children = [r for r in records if r.get("undo") == "process" and r.get("n") not in done]
    candidates = [("shim", *header["shim"]), ("broker", *header["broker"])]
    candidates += [(child["name"], child["pid"], child["start"]) for child in children]
    alive = [RecordedProcess(name, pid) for name, pid, start in candidates if is_alive(pid, start)]
    for child in [process for process in alive if process.name not in ("shim", "broker")]:
        alive += (RecordedProcess(child.name, pid, by_child=True) for pid in descendants(child.pid))
    return RecordedSandbox(header["sandbox"], header["owner"], directory, header["socket"], tuple(alive))


def _parse(line: str) -> dict[str, Any]:
    """One record; a torn last line is one that was never acted on."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
