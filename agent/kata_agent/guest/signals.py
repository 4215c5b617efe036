"""Signals for the first process of a container whose program has only just begun.

The kernel drops a signal for the first process of a PID namespace that has no handler for it, see
pid_namespaces(7). That is what the container runtime's process is until it executes the program, and the
program until it has installed its handlers: moments on a host, seconds in an emulated guest. A signal is kept
for so long.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

SETTLING = 10.0
"""Seconds from its execution in which a program may still install a handler for a signal that came before."""

_POLL = 0.01
_NEVER_LOST = frozenset({0, signal.SIGKILL, signal.SIGSTOP})
_IGNORED = frozenset({signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH})


class FirstSignals:
    """Delivers signals to a container's first process, from when its start begins.

    pid: of the process, which executes its program hereafter. send: gives it a signal now, if it still runs.
    """

    def __init__(self, pid: int, send: Callable[[int], object]) -> None:
        self._pid = pid
        self._send = send
        self._before = _program(pid)
        self._settled_at: float | None = None
        self._lock = threading.Lock()
        self._kept: set[int] = set()

    def deliver(self, number: int) -> None:
        """Send a signal, or keep it until it is not lost; like a pending one it is kept once."""
        if not self._would_lose(number):
            self._send(number)
            return
        with self._lock:
            if number in self._kept:
                return
            self._kept.add(number)
        threading.Thread(target=self._keep, args=(number,), name=f"signal {number}", daemon=True).start()

    def _keep(self, number: int) -> None:
        while self._would_lose(number):
            time.sleep(_POLL)
        with self._lock:
            self._kept.discard(number)
        self._send(number)

    def _would_lose(self, number: int) -> bool:
        """Whether the kernel would drop it now although the program may yet come to handle it."""
        if number in _NEVER_LOST or number in _IGNORED or not drops(_status(self._pid), number):
            return False
        if self._settled_at is None and _program(self._pid) != self._before:
            self._settled_at = time.monotonic() + SETTLING
        return self._settled_at is None or time.monotonic() < self._settled_at


def drops(status: str, number: int) -> bool:
    """Whether the kernel drops a signal for a process; status: /proc/PID/status, empty if it has ended."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "SigCgt" not in fields or fields.get("NSpid", "").split()[1:][-1:] != ["1"]:
        return False
    handled = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16) | int(fields["SigBlk"], 16)
    return not handled >> (number - 1) & 1


def _status(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _program(pid: int) -> tuple[int, int] | None:
    """What it executes; None once it has ended."""
    try:
        found = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return found.st_dev, found.st_ino
