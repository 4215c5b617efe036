"""What the kernel reports of a process: the seccomp state of each of its threads.

Standard library only: the broker imports this before anything else is loaded.
Source: proc_pid_status(5), fields Name, Seccomp and Seccomp_filters.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

MODES = {0: "disabled", 1: "strict", 2: "filter"}


class ThreadConfinement:
    """One thread's seccomp state as /proc reports it."""

    __slots__ = ("filters", "mode", "name", "no_new_privs", "tid")

    def __init__(self, tid: int, name: str, mode: int, filters: int, no_new_privs: bool) -> None:
        self.tid = tid
        self.name = name
        self.mode = mode
        self.filters = filters
        self.no_new_privs = no_new_privs

    @property
    def confined(self) -> bool:
        """Whether a filter is in force on this thread."""
        return self.mode == 2 and self.filters > 0

    def __repr__(self) -> str:
        return (
            f"ThreadConfinement(tid={self.tid}, name={self.name!r}, mode={self.mode}, filters={self.filters})"
        )


def read_threads(pid: int, proc: str = "/proc") -> list[ThreadConfinement]:
    """Read the state of every thread of a process, ordered by thread id (the main thread first).

    A thread that ends while it is read is left out. The directory is read again until two readings name the
    same threads, so that one started in between is not missed.

    Raises:
        ProcessLookupError: there is no such process.
    """
    found: dict[int, ThreadConfinement] = {}
    while True:
        try:
            tids = {int(entry) for entry in os.listdir(f"{proc}/{pid}/task")}
        except FileNotFoundError:
            raise ProcessLookupError(f"no process {pid}") from None
        if tids == found.keys():
            return [found[tid] for tid in sorted(found)]
        found = {tid: found[tid] for tid in found.keys() & tids}
        for tid in tids - found.keys():
            try:
                found[tid] = _read_status(f"{proc}/{pid}/task/{tid}/status", tid)
            except (FileNotFoundError, ProcessLookupError):
                continue


def inherited_filters(proc: str = "/proc") -> int:
    """Count the filters in force on the caller's own main thread: a child starts with as many.

    A runtime that itself runs confined (in a container, under systemd's SystemCallFilter) hands its filters
    down, and that a VMM is in filter mode then shows nothing. Read it before the caller seals itself.
    """
    return _read_status(f"{proc}/self/status", os.getpid()).filters


def find_breach(
    threads: Sequence[ThreadConfinement],
    confined: bool,
    inherited: int = 0,
    *,
    process: str = "",
    required_by: str = "the configuration",
) -> str | None:
    """Compare what the kernel reports of a process with what the configuration asks for.

    confined: whether every thread must be under a filter of its own, or none may be. inherited: how many
    filters the process started with. process, required_by: its name, and what asks for this, for the
    sentence. Returns None when they agree, else one sentence about the first thread for which they differ.
    """
    of_process = f" of {process}" if process else ""
    if not threads:
        return f"the kernel lists no thread{of_process}; {required_by} requires filters on each"
    for thread in threads:
        agrees = thread.confined and thread.filters > inherited if confined else thread.filters == inherited
        if agrees:
            continue
        mode = 2 if confined or inherited else 0
        if thread.mode != mode:
            reported, wanted = f"seccomp mode {thread.mode}", f"mode {mode}"
        else:
            reported = f"{thread.filters} seccomp filters"
            wanted = f"more than {inherited}" if confined else f"{inherited}"
        where = f"thread {thread.tid} ({thread.name}){of_process}"
        return f"the kernel reports {reported} for {where}; {required_by} requires {wanted}"
    return None


def _read_status(path: str, tid: int) -> ThreadConfinement:
    fields: dict[str, str] = {}
    with open(path, encoding="utf-8", errors="replace") as status:
        for line in status:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    mode = int(fields.get("Seccomp", "0"))
    # Kernels before 5.9 do not count the filters: a thread in filter mode has at least one.
    filters = int(fields.get("Seccomp_filters", "1" if mode == 2 else "0"))
    no_new_privs = fields.get("NoNewPrivs", "0") == "1"
    return ThreadConfinement(tid, fields.get("Name", "?"), mode, filters, no_new_privs)
