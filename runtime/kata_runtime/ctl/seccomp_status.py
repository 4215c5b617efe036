"""`kata-ctl seccomp status [SANDBOX]`: what the kernel reports of every thread of every sandbox."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import readback, syscalls
from kata_hypervisor.seccomp.confinement import MODES, ThreadConfinement, read_threads
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import Survey, survey, union
from kata_runtime.ctl import running
from kata_runtime.ctl.running import RecordedSandbox, read_seal
from kata_runtime.ctl.seccomp import GOOD, reporting
from kata_runtime.logging import printable

_ROW = "    {:<16} {:<12} {:>7} {:>6} {:>10} {:>7} {:>8}  {}"
_HEAD = _ROW.format("thread", "mode", "filters", "calls", "unfiltered", "escape", "score", "thread ids")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "status",
        help="what confines each thread of the running sandboxes",
        description="Print, for each thread of each process of the running sandboxes, the seccomp mode and "
        "the number of filters as /proc reports them, and the system calls that the installed programs let "
        "through: they are read back from the kernel and followed for every call. That stops a thread for "
        "less than a millisecond, and needs root.",
        epilog="calls: let through at all; unfiltered: whatever their arguments; escape: those that lead out "
        "of the process; score: see kata-ctl seccomp score. Exit status: 0 shown, 2 no such sandbox.",
    )
    parser.add_argument("sandbox", nargs="?", default="", help="only this sandbox: its id, or a prefix of it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=reporting(run))


def run(arguments: argparse.Namespace) -> int:
    """Print the state of the sandboxes and return the exit status."""
    inspector = Inspector()
    reports = [report(sandbox, inspector) for sandbox in running.chosen(arguments.sandbox)]
    text = "\n\n".join(map(_text, reports))  # with names of threads, which a VMM that a guest owns chooses
    print(json.dumps(reports, indent=2) if arguments.json else printable(text))
    return GOOD


class Inspector:
    """Reads the programs of threads, and follows each set of programs once."""

    def __init__(self) -> None:
        self._surveys: dict[tuple[bytes, ...], Survey] = {}

    def survey(self, tid: int) -> Survey:
        """What a thread's filters let through.

        Raises:
            SealError: they cannot be read.
            ProcessLookupError: the thread has exited.
        """
        programs = tuple(readback.read_filters(tid))
        if programs not in self._surveys:
            self._surveys[programs] = survey(programs, syscalls.native())
        return self._surveys[programs]


def report(sandbox: RecordedSandbox, inspector: Inspector) -> dict[str, Any]:
    """Everything about one sandbox, as JSON has it."""
    processes = []
    for process in sandbox.processes:
        try:
            threads = read_threads(process.pid)
        except ProcessLookupError:
            continue
        processes.append({"name": process.name, "pid": process.pid, **_inspect(threads, inspector)})
    seal = read_seal(sandbox.directory)
    return {"id": sandbox.id, "namespace": sandbox.namespace, "seal": seal, "processes": processes}


def _inspect(threads: Sequence[ThreadConfinement], inspector: Inspector) -> dict[str, Any]:
    """What is known of a process; `surface` is what its threads let through together."""
    rows, surveys, reason = [], [], None
    for thread in threads:
        row = _thread(thread)
        try:
            found = inspector.survey(thread.tid)
        except SealError as error:
            reason = str(error)
        except ProcessLookupError:
            continue
        else:
            surveys.append(found)
            row["surface"] = asdict(surface_of(found))
        rows.append(row)
    complete = surveys and len(surveys) == len(rows)
    together = asdict(surface_of(union(surveys))) if complete else None
    return {"threads": rows, "surface": together, "unread": reason}


def _thread(thread: ThreadConfinement) -> dict[str, Any]:
    return {
        "tid": thread.tid,
        "name": thread.name,
        "mode": thread.mode,
        "mode_name": MODES.get(thread.mode, "unknown"),
        "filters": thread.filters,
        "no_new_privs": thread.no_new_privs,
        "surface": None,
    }


def _text(found: dict[str, Any]) -> str:
    lines = [f"sandbox {found['id']} (namespace {found['namespace']})", *_seal_lines(found["seal"])]
    for process in found["processes"]:
        lines.append(f"  {process['name']}, pid {process['pid']}")
        lines.append(_HEAD)
        lines += _thread_lines(process["threads"])
        if process["unread"]:
            lines.append(f"    programs not read: {process['unread']}")
        elif process["surface"] and process["surface"]["gaps"]:
            lines.append(f"    let through as well: {', '.join(process['surface']['gaps'])}")
    return "\n".join(lines)


def _seal_lines(seal: dict[str, Any] | None) -> Iterator[str]:
    if seal is None:
        yield "  the shim is not sealed"
        return
    policy, mode = seal.get("policy"), seal.get("mode")
    meaning = (
        "what is not allowed is let through and named"
        if mode == "log"
        else "what is not allowed ends the pod"
    )
    yield f"  the shim is sealed: policy {policy}, mode {mode}: {meaning}"
    for call, count in (seal.get("calls") or {}).items():
        yield f"    not allowed, and called {count} times: {call}"


def _thread_lines(threads: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line for each name and state; it lists every thread that has them."""
    groups: dict[str, list[int]] = {}
    for thread in threads:
        mode = f"{thread['mode']} ({thread['mode_name']})"
        head = [thread["name"], mode, thread["filters"], *_columns(thread["surface"])]
        groups.setdefault(_ROW.format(*head, "").rstrip(), []).append(thread["tid"])
    for line, tids in groups.items():
        yield f"{line}  {' '.join(map(str, tids))}"


def _columns(surface: dict[str, Any] | None) -> tuple[object, ...]:
    if surface is None:
        return "?", "?", "?", "?"
    return surface["allowed"], surface["unfiltered"], len(surface["escape"]), f"{surface['score']:g}"
