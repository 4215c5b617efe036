"""Lines as containerd's own: time="..." level=info msg="..." sandbox=... Cheap: the broker uses it."""

from __future__ import annotations

import os
import time

# The value of a key log_level -> a level of Python's logging.
LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40, "critical": 50}

RUNTIME, HYPERVISOR = "", "kata_hypervisor"
"""Loggers with a level of their own: all of the runtime's process, and in it what there is to say of the
hypervisor, with the lines of the guest's console and of the programs that run the machine, at debug.
"""


def set_level(logger: str, log_level: str) -> None:
    """Log from a level of LEVELS on. logger: RUNTIME or HYPERVISOR."""
    import logging  # not for the broker

    logging.getLogger(logger).setLevel(LEVELS[log_level])


def level_of(logger: str) -> str:
    """The name of the level that a logger logs from; see `set_level`."""
    import logging  # not for the broker

    level = logging.getLogger(logger).getEffectiveLevel()
    return next((name for name, number in reversed(LEVELS.items()) if number <= level), "trace")


def line(level: str, message: str, sandbox: str, seconds: float) -> str:
    """One line with its end, whatever the message holds. seconds: since the epoch."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e3):03d}Z"
    return f'time="{stamp}" level={level} msg={_quote(message)} runtime=kata sandbox={sandbox}\n'


class LineWriter:
    """Writes lines to a FIFO that does not block: each whole, or counted as dropped.

    A line longer than PIPE_BUF may find room for its beginning only (pipe(7)): it is dropped, and the next
    begins on a line of its own. How many were dropped is said before the next line that has room.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._dropped = 0
        self._torn = b""

    def turn_to(self, fd: int) -> None:
        """Write to another descriptor from here on; the one before is closed."""
        os.close(self._fd)
        self._fd, self._torn = fd, b""

    def write(self, data: bytes) -> None:
        """Write one line, or count it."""
        head = self._torn
        if self._dropped:
            head += f'level=warning msg="{self._dropped} log lines dropped: nobody read them"\n'.encode()
        packet = head + data
        try:
            written = os.write(self._fd, packet)
        except (BlockingIOError, BrokenPipeError):
            self._dropped += 1
            return
        if written == len(packet):
            self._dropped, self._torn = 0, b""
            return
        self._dropped = 1 if written >= len(head) else self._dropped + 1
        self._torn = b"" if packet[:written].endswith(b"\n") else b"\n"


def printable(text: str) -> str:
    """A text as operators may see it: what a terminal would obey is written as an escape, but for line ends.

    A guest's own output is in errors and in the log: its agent's, a VMM's that it took over, a console's.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{printable(escaped)}"'
