"""What the broker reports itself, where the shim cannot be trusted to: in containerd's log and the bundle."""

from __future__ import annotations

import os
import select
import time

from kata_runtime.broker.event_loop import WRITABLE
from kata_runtime.logging import line, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kata_runtime.broker.event_loop import EventLoop

FATAL_MESSAGE = "fatal-message"
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW

MAX_KEPT = 256 << 10
"""Bytes of lines that are kept while nobody reads the log."""

_AT_ONCE = select.PIPE_BUF


class LogSink:
    """The FIFO `log` of a bundle. Without one, or without a reader for long, what is written is lost.

    loop: waits for room in it; without one, what does not fit is lost at once. on_room: called when all that
    was kept is written.
    """

    def __init__(self, bundle: str, sandbox: str, loop: EventLoop | None = None) -> None:
        self._bundle = bundle
        self._sandbox = sandbox
        self._loop = loop
        self._kept = bytearray()
        self._waiting = False
        self._lost = 0
        self.on_room: Callable[[], None] = lambda: None
        try:
            # For reading as well: writing does not fail then while containerd is restarted.
            self._fd = os.open(os.path.join(bundle, "log"), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    @property
    def idle(self) -> bool:
        """Whether all is written."""
        return not self._kept

    def write(self, level: str, message: str) -> None:
        """Write a line without ever waiting for a reader. level: one of containerd's, such as "error"."""
        self.put(line(level, message, self._sandbox, time.time()))

    def put(self, text: str) -> None:
        """Write lines as they are, as `write`."""
        if self._fd < 0:
            return
        data = text.encode("utf-8", "replace")
        if self._kept and len(self._kept) + len(data) > MAX_KEPT:
            self._lost += data.count(b"\n")
            return
        self._kept += data
        if not self._waiting:
            self._flush()

    def _loss(self) -> bytes:
        lost, self._lost = self._lost, 0
        sentence = f"{lost} lines of the broker were not logged: nobody read them"
        return line("warning", sentence, self._sandbox, time.time()).encode()

    def _flush(self) -> None:
        """Write what there is room for, and wait for more where that is not all."""
        try:
            while self._kept or self._lost:
                self._kept += self._loss() if not self._kept else b""
                del self._kept[: os.write(self._fd, self._kept[:_AT_ONCE])]
        except BlockingIOError:
            pass
        except OSError:
            self._kept.clear()
        if self._kept and self._loop is None:
            self._kept.clear()
        self._wait(bool(self._kept))

    def _wait(self, waiting: bool) -> None:
        if self._loop is None or waiting == self._waiting:
            return
        self._waiting = waiting
        if waiting:
            self._loop.add(self._fd, lambda events: self._on_room(), WRITABLE)
        else:
            self._loop.remove(self._fd)

    def _on_room(self) -> None:
        self._flush()
        if self.idle:
            self.on_room()

    def drain(self, seconds: float) -> None:
        """Write what is kept before the broker exits, for so long at most."""
        waiter = select.poll()
        deadline = time.monotonic() + seconds
        while self._kept and (left := deadline - time.monotonic()) > 0:
            waiter.register(self._fd, select.POLLOUT)
            waiter.poll(left * 1e3)
            self._flush()

    def keep(self, sentence: str) -> None:
        """Leave a sentence in the bundle, for `shim delete` to repeat."""
        fd = os.open(os.path.join(self._bundle, FATAL_MESSAGE), _FRESH, 0o600)
        try:
            os.write(fd, printable(sentence).encode("utf-8", "replace"))
        finally:
            os.close(fd)


def take_fatal_message(bundle: str) -> str:
    """Return the sentence that a broker left in a bundle, empty without one, and remove it."""
    path = os.path.join(bundle, FATAL_MESSAGE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(fd, encoding="utf-8", errors="replace") as file:
        sentence = file.read(4096)
    os.unlink(path)
    return sentence
