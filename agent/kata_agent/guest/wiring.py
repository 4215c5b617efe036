"""The process's side of its standard streams: three pipes, or a terminal that the container runtime makes."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
from typing import NamedTuple

from kata_agent.guest.errors import GuestError

PIPE_SIZE = 1 << 20
_NAMES = itertools.count()


class Ends(NamedTuple):
    """The agent's ends, descriptors that the taker owns; None where the process has /dev/null or no such end.

    terminal: the terminal once more, to resize it.
    """

    stdin: int | None
    stdout: int | None
    stderr: int | None
    terminal: int | None


class Wiring:
    """Both sides of a process's streams until it runs.

    child: what the container runtime gets as 0, 1 and 2. console: path of the socket on which the container
    runtime hands over the terminal, or None.
    """

    def __init__(
        self,
        *,
        terminal: bool,
        wanted: tuple[bool, bool, bool] = (True, True, True),
        pipe_size: int = PIPE_SIZE,
        directory: str = "/run/kata-agent",
    ) -> None:
        self._open: set[int] = set()
        self._listener: _ConsoleListener | None = None
        self._ends: list[int | None] = [None, None, None]
        self.console: str | None = None
        try:
            if terminal:
                self._listener = _ConsoleListener(f"{directory}/console-{next(_NAMES)}.sock")
                self.console = self._listener.path
            child = [
                self._pipe(index, pipe_size) if want and not terminal else self._null()
                for index, want in enumerate(wanted)
            ]
        except BaseException:
            self.close()
            raise
        self.child: tuple[int, int, int] = (child[0], child[1], child[2])

    def _null(self) -> int:
        return self._own(os.open(os.devnull, os.O_RDWR))

    def _pipe(self, index: int, size: int) -> int:
        """A pipe for the process's descriptor `index`; returns the process's end."""
        reader, writer = os.pipe()
        self._own(reader)
        self._own(writer)
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
        except OSError:
            pass  # a limit of the kernel's; the default size is only slower
        self._ends[index] = writer if index == 0 else reader
        return reader if index == 0 else writer

    def _own(self, descriptor: int) -> int:
        self._open.add(descriptor)
        return descriptor

    def connect(self) -> Ends:
        """Once the process runs: close its side here, and hand over the agent's.

        Raises:
            GuestError: the container runtime did not pass the terminal.
        """
        if self._listener is not None:
            master = self._own(self._listener.receive())
            self._ends = [self._own(os.dup(master)), master, None]
            terminal = self._own(os.dup(master))
        else:
            terminal = None
        stdin, stdout, stderr = self._ends
        ends = Ends(stdin, stdout, stderr, terminal)
        self._open.difference_update(end for end in ends if end is not None)
        self.close()
        return ends

    def close(self) -> None:
        """Close everything that was not handed over."""
        while self._open:
            os.close(self._open.pop())
        if self._listener is not None:
            self._listener.close()


class _ConsoleListener:
    """Receives the terminal's master; see --console-socket of runc and crun."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(5)
        try:
            self._sock.bind(path)
            self._sock.listen(1)
        except BaseException:
            self._sock.close()
            raise

    def receive(self) -> int:
        try:
            connection, _ = self._sock.accept()
            with connection:
                connection.settimeout(5)
                _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        except OSError as error:
            raise GuestError(f"receive the terminal from the container runtime: {error}") from error
        if not descriptors:
            raise GuestError("receive the terminal from the container runtime: it sent none")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        self._sock.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
