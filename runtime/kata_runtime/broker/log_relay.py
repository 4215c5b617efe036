"""The log of a sealed shim: it writes to the broker, which passes whole lines on to containerd.

So a shim that a guest owns has no end of containerd's FIFO: it can neither fill it, nor cut a line of the
broker's in two, nor write what a terminal obeys. It has a rate of its own, and the broker's lines go before
its own. What is not passed on yet waits in a pipe, and what does not fit there the shim counts and drops.
"""

from __future__ import annotations

import os
import select
import time

from kata_runtime.logging import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.event_loop import EventLoop
    from kata_runtime.broker.log_sink import LogSink

RATE, BURST = 64 << 10, 1 << 20
"""Bytes a second that the shim may write in the long run, and at once."""

PIECE = 4096
MAX_LINE = 64 << 10
"""Bytes of a line that are passed on as one, as many as a pipe has room for."""


class LogRelay:
    """What one sealed shim says; nothing until `open`."""

    def __init__(self, sink: LogSink, loop: EventLoop) -> None:
        self._sink = sink
        self._loop = loop
        self._pipe = -1
        self._watched = False
        self._line = b""
        self._allowed = float(BURST)
        self._counted = time.monotonic()
        sink.on_room = self.resume

    @property
    def is_open(self) -> bool:
        """Whether there is a shim that has not closed its end."""
        return self._pipe >= 0

    def open(self) -> int:
        """Make the pipe; returns the shim's end of it."""
        self._pipe, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.resume()
        return theirs

    def resume(self) -> None:
        """Read on, if there is room and the shim has not said too much; see `remaining`."""
        if not self.is_open:
            return
        wanted = self._sink.idle and self._allowance() >= PIECE
        if wanted and not self._watched:
            self._loop.add(self._pipe, lambda events: self._pass())
        elif not wanted and self._watched:
            self._loop.remove(self._pipe)
        self._watched = wanted

    def remaining(self) -> int | None:
        """Milliseconds until `resume` is due, for poll(2); None when nothing but room is waited for."""
        if not self.is_open or self._watched or not self._sink.idle:
            return None
        return max(1, round((PIECE - self._allowance()) / RATE * 1e3))

    def _allowance(self) -> float:
        now = time.monotonic()
        self._allowed = min(float(BURST), self._allowed + (now - self._counted) * RATE)
        self._counted = now
        return self._allowed

    def _pass(self) -> None:
        """Pass on one piece of what the shim has written."""
        try:
            piece = os.read(self._pipe, PIECE)
        except BlockingIOError:
            return
        self._allowed -= len(piece)
        self._take(piece)
        if not piece:
            self._close()
        self.resume()

    def _take(self, piece: bytes) -> None:
        """piece: empty at the end, where a line may be unfinished."""
        *lines, self._line = (self._line + piece).split(b"\n")
        if self._line and (not piece or len(self._line) >= MAX_LINE):
            lines.append(self._line)
            self._line = b""
        for line in lines:
            self._sink.put(printable(line.decode("utf-8", "replace")) + "\n")

    def _close(self) -> None:
        if self._watched:
            self._loop.remove(self._pipe)
            self._watched = False
        os.close(self._pipe)
        self._pipe = -1

    def follow(self, seconds: float) -> None:
        """Pass on what the shim says until it is gone, or for so many seconds at most; then what is left."""
        waiter = select.poll()
        deadline = time.monotonic() + seconds
        while self.is_open and (left := deadline - time.monotonic()) > 0:
            if self._allowance() < PIECE:
                break  # it has said too much
            waiter.register(self._pipe, select.POLLIN)
            if not waiter.poll(left * 1e3):
                break
            self._pass()
        if self.is_open:
            self._take(self._rest())
            self._take(b"")
            self._close()

    def _rest(self) -> bytes:
        """What is in the pipe, which holds no more than BURST."""
        rest = b""
        try:
            while len(rest) < BURST and (piece := os.read(self._pipe, PIECE)):
                rest += piece
        except BlockingIOError:
            pass
        return rest
