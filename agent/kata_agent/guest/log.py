"""The agent's log: single short lines to the console, of which the host keeps the tail."""

from __future__ import annotations

import os

_PREFIX = "kata-agent: "
_LONGEST = 1000
_verbose = False


def set_verbose(verbose: bool) -> None:
    """Whether `debug` writes."""
    global _verbose  # noqa: PLW0603 - a process has one log
    _verbose = verbose


def info(message: str) -> None:
    """Write a line; control characters of the message are escaped, and a very long one is cut."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message[:_LONGEST])
    try:
        os.write(2, f"{_PREFIX}{line}\n".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody is left to tell


def debug(message: str) -> None:
    """As `info`, if the host asked for it with agent.log=debug."""
    if _verbose:
        info(message)
