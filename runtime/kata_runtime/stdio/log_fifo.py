"""The handler of Python's logging that writes to containerd's log, and from the seal on to the broker.

A reader that is away or slow must never stop the shim: lines that do not fit are counted and dropped.
"""

from __future__ import annotations

import logging
import os

from kata_runtime.logging import LineWriter


class FifoHandler(logging.Handler):
    """Writes to a FIFO without ever waiting for its reader."""

    def __init__(self, path: str) -> None:
        super().__init__()
        # For reading as well: writing does not fail then while containerd is restarted.
        self._writer = LineWriter(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or count it as dropped."""
        self._writer.write(self.format(record).encode("utf-8", "backslashreplace"))

    def turn_to(self, pipe: int) -> None:
        """Write to a pipe from here on, which becomes this handler's, and give the FIFO up."""
        self._writer.turn_to(pipe)


def handler() -> FifoHandler | None:
    """The one that this process logs to; None where it logs to another place."""
    found = [one for one in logging.getLogger().handlers if isinstance(one, FifoHandler)]
    return found[0] if found else None
