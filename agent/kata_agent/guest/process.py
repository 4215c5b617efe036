"""A process of a container, as the host knows it: its id, its streams and, in the end, its exit status."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import threading

from kata_agent.guest.errors import StateError
from kata_agent.guest.reaper import Reaper
from kata_agent.guest.stdio import Stdio
from kata_agent.guest.wiring import Ends


class Process:
    """One process.

    pid: in the guest's own pid namespace. status: the exit status, None while it runs.
    """

    def __init__(self, process_id: str, reaper: Reaper, stdio: Stdio) -> None:
        self.id = process_id
        self.stdio = stdio
        self.pid = 0
        self.status: int | None = None
        self._reaper = reaper
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._terminal: int | None = None

    def attach(self, pid: int, ends: Ends) -> None:
        """The process runs: connect its streams, and watch for its end."""
        self.pid = pid
        self._terminal = ends.terminal
        self.stdio.attach(ends)
        self._reaper.watch(pid, self._end)

    def _end(self, status: int) -> None:
        self.stdio.ended()
        self._close_terminal()
        self.status = status
        self._ended.set()

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit status, once there is one; None if `timeout` seconds pass before."""
        self._ended.wait(timeout)
        return self.status

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended does not mind."""
        self._reaper.signal(self.pid, number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size.

        Raises:
            StateError: the process has no terminal (any more).
        """
        with self._lock:
            if self._terminal is None:
                raise StateError(f"process {self.id} has no terminal")
            size = struct.pack("HHHH", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        """Release the streams and the terminal."""
        self.stdio.close()
        self._close_terminal()

    def _close_terminal(self) -> None:
        with self._lock:
            terminal, self._terminal = self._terminal, None
        if terminal is not None:
            os.close(terminal)
