"""The one place that waits for child processes: PID 1 is the parent of every orphan in the guest.

A container's first process is started by the container runtime and becomes an orphan, so its pid is known
only after it runs, and it may have ended by then: while anybody is `expecting`, the exits of unknown pids are
kept. Waiting and signalling share a lock, so that a signal can never reach a pid that was reused.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from kata_agent.guest import log

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# Python ignores some signals, and whoever started this process may have ignored others.
_DEFAULTED = tuple(number for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP))


class Reaper:
    """Starts child processes, collects their exit statuses, and delivers signals to them.

    An exit status is the code, or 128 and the number of the signal that ended the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[int], None]] = {}
        self._unknown: dict[int, int] = {}
        self._expecting = 0

    def start(self) -> None:
        """Begin to collect. Call it before any other thread exists: they inherit the blocked SIGCHLD."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        threading.Thread(target=self._collect_forever, name="reaper", daemon=True).start()

    def _collect_forever(self) -> None:
        while True:
            self.collect()
            signal.sigwait({signal.SIGCHLD})

    def collect(self) -> None:
        """Take the status of every child that has ended, and tell who watches it."""
        while (ended := self._collect_one()) is not None:
            watcher, status = ended
            if watcher is not None:
                _tell(watcher, status)

    def _collect_one(self) -> tuple[Callable[[int], None] | None, int] | None:
        with self._lock:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == 0:
                return None
            status = exit_status(wait_status)
            watcher = self._watchers.pop(pid, None)
            if watcher is None and self._expecting:
                self._unknown[pid] = status
            return watcher, status

    def expecting(self) -> Expectation:
        """A context in which a process may appear whose pid is not known yet."""
        return Expectation(self)

    def expect(self, change: int) -> None:
        """Count who is expecting; the last one to leave forgets the statuses that nobody asked for."""
        with self._lock:
            self._expecting += change
            if not self._expecting:
                self._unknown.clear()

    def watch(self, pid: int, watcher: Callable[[int], None]) -> None:
        """Call watcher(status) once the process ends: from the reaper's thread, or now if it has ended."""
        with self._lock:
            status = self._unknown.pop(pid, None)
            if status is None:
                self._watchers[pid] = watcher
        if status is not None:
            watcher(status)

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal to a watched process; False if it has ended."""
        with self._lock:
            if pid not in self._watchers:
                return False
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return False
            return True

    def run(self, command: list[str], stdio: tuple[int, int, int], timeout: float | None = None) -> int:
        """Run a program to its end with these descriptors as its 0, 1 and 2; return its exit status.

        timeout: seconds until it is killed.

        Raises:
            OSError: it cannot be started. TimeoutError: it was killed.
        """
        ended = threading.Event()
        result: list[int] = []

        def watcher(status: int) -> None:
            result.append(status)
            ended.set()

        with self._lock:
            pid = os.posix_spawn(
                command[0],
                command,
                ENVIRONMENT,
                file_actions=_placed(stdio),
                setsigmask=(),
                setsigdef=_DEFAULTED,
            )
            self._watchers[pid] = watcher
        if not ended.wait(timeout):
            self.signal(pid, signal.SIGKILL)
            raise TimeoutError(f"it did not end within {timeout:g} s and was killed")
        return result[0]


class Expectation:
    """See Reaper.expecting."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper

    def __enter__(self) -> None:
        self._reaper.expect(1)

    def __exit__(self, *_: object) -> None:
        self._reaper.expect(-1)


def _tell(watcher: Callable[[int], None], status: int) -> None:
    """A watcher's fault is its own: the other children have still to be collected."""
    try:
        watcher(status)
    except Exception as error:  # noqa: BLE001 - whatever it is
        log.info(f"the end of a process could not be recorded: {type(error).__name__}: {error}")


def exit_status(wait_status: int) -> int:
    """The code of a process that exited, or 128 and the number of the signal that ended it."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def _placed(stdio: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """File actions that put descriptors (above 2, as all of the agent's are) at 0, 1 and 2."""
    return [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(stdio)]
