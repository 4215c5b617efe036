"""What the broker reports itself, where the shim cannot be trusted to: in containerd's log and the bundle."""

from __future__ import annotations

import os
import time

from kata_runtime.logging import line, printable

FATAL_MESSAGE = "fatal-message"
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class LogSink:
    """The FIFO `log` of a bundle. Without one, or without a reader, what is written is lost."""

    def __init__(self, bundle: str, sandbox: str) -> None:
        self._bundle = bundle
        self._sandbox = sandbox
        try:
            # For reading as well: writing does not fail then while containerd is restarted.
            self._fd = os.open(os.path.join(bundle, "log"), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def write(self, level: str, message: str) -> None:
        """Write a line without ever waiting for a reader. level: one of containerd's, such as "error"."""
        if self._fd < 0:
            return
        try:
            os.write(self._fd, line(level, message, self._sandbox, time.time()).encode("utf-8", "replace"))
        except OSError:
            return

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
