"""Which poststop hooks were begun: a file with their numbers, each written by the process that becomes it.

It is the last that this process does before execve: whoever is killed, a hook that is not in there has not
run, and one that is there is not run again.
"""

from __future__ import annotations

import os

SUFFIX = ".begun"
"""What the file's name has after that of the record of the hooks."""

_MODE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_MOST = 1 << 20


def open_beside(record: str, directory: int | None = None) -> int:
    """Open the file that belongs to a record of hooks, new where there is none. Raises OSError."""
    return os.open(record + SUFFIX, _MODE, 0o600, dir_fd=directory)


def read(file: int) -> set[int]:
    """The numbers of those that were begun; a line that was not finished is of none."""
    lines = os.pread(file, _MOST, 0).split(b"\n")[:-1]
    return set(map(int, lines))


def write(file: int, number: int) -> None:
    """This process becomes the hook of this number now."""
    os.write(file, b"%d\n" % number)
