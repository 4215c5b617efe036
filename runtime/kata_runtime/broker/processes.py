"""Processes by identity: the kernel gives a pid again; a pid with its start time is one process."""

from __future__ import annotations

import errno
import os
import select
import signal
import time

GRACE = 5.0
"""How long a process that was sent SIGKILL may take to exit, in seconds."""


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc_pid_stat(5), field 22).

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # The second field is the name in parentheses, and may hold anything.
    return int(stat.rpartition(b")")[2].split()[19])


def is_alive(pid: int, start: int) -> bool:
    """Whether this very process exists, be it as a zombie."""
    try:
        return start_time(pid) == start
    except ProcessLookupError:
        return False


def children() -> list[int]:
    """Our children, adopted ones and zombies too; none where the kernel has no list (proc_pid_task(5))."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        return []  # CONFIG_PROC_CHILDREN is off: the rollback journal and the cgroup know all but strays


def wait(pid: int, start: int, seconds: float) -> None:
    """Wait until this very process has exited, for so long at most."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(pid, start):
            _has_exited(handle, seconds)
    finally:
        os.close(handle)


def retire(pid: int, start: int, patience: float) -> bool:
    """End this very process as `end` does, when it has neither exited by itself nor after SIGTERM.

    patience: the seconds that it gets for each of the two.
    """
    wait(pid, start, patience)
    return _signal(pid, start, signal.SIGTERM, patience) or end(pid, start)


def end(pid: int, start: int, grace: float = GRACE) -> bool:
    """Kill this very process, and no other that has its pid since; True once it has exited or is a zombie."""
    return _signal(pid, start, signal.SIGKILL, grace)


def _signal(pid: int, start: int, number: int, grace: float) -> bool:
    """Send a signal; whether the process has exited, or exits within so many seconds."""
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        # Linux 6.1 says EINVAL of a process that is gone when its pid still names a session or process group.
        if error.errno not in (errno.ESRCH, errno.EINVAL) or is_alive(pid, start):
            raise
        return True
    try:
        # Asked after the descriptor was opened: if the answer is right, the descriptor is the right process.
        if not is_alive(pid, start):
            return True
        signal.pidfd_send_signal(handle, number)  # a zombie takes it too
        return _has_exited(handle, grace)
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def _has_exited(handle: int, grace: float) -> bool:
    waiter = select.poll()
    waiter.register(handle, select.POLLIN)
    deadline = time.monotonic() + grace
    while (left := deadline - time.monotonic()) > 0:
        if waiter.poll(left * 1e3):
            return True
    return False
