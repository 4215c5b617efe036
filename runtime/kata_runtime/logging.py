"""Lines as containerd's own: time="..." level=info msg="..." sandbox=... Cheap: the broker uses it."""

from __future__ import annotations

import time

# log_level of [runtime] -> a level of Python's logging.
LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40, "critical": 50}


def set_level(log_level: str, *, debug: bool) -> None:
    """Log from a level of LEVELS on, with `debug` from debug on; what containerd asked for at debug stays."""
    import logging  # not for the broker

    root = logging.getLogger()
    if root.level != logging.DEBUG:
        root.setLevel(LEVELS["debug" if debug else log_level])


def line(level: str, message: str, sandbox: str, seconds: float) -> str:
    """One line with its end, whatever the message holds. seconds: since the epoch."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e3):03d}Z"
    return f'time="{stamp}" level={level} msg={_quote(message)} runtime=kata sandbox={sandbox}\n'


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
