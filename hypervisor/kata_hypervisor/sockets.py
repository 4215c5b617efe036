"""Unix sockets by path: a name has 107 bytes at most, and what an earlier machine left is in the way."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import anyio

from kata_hypervisor.errors import HostUnfitError, LaunchError

PATH_LIMIT = 107
"""Bytes of a unix socket's path: sockaddr_un(7) has 108 with the terminator."""

POLL = 0.005


def check_path(path: Path, what: str) -> Path:
    """Return the path of a socket that a VMM makes. Raises HostUnfitError when it is too long."""
    length = len(os.fsencode(path))
    if length > PATH_LIMIT:
        raise HostUnfitError(
            f"cannot make {what}: the path {path} has {length} bytes, a unix socket's has at most "
            f"{PATH_LIMIT}; give the sandbox a directory with a shorter path"
        )
    return path


def clear(path: Path) -> None:
    """Remove a socket or a lock file that is left of an earlier machine.

    Raises:
        LaunchError: there is something else, or a socket that somebody listens on.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(kind):
        if _is_served(path):
            raise LaunchError(f"cannot use the socket {path}: another process listens on it")
    elif not stat.S_ISREG(kind):
        raise LaunchError(f"cannot use the socket {path}: there is something else of that name; remove it")
    path.unlink(missing_ok=True)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


async def connect(path: Path) -> socket.socket:
    """Connect to a socket as soon as somebody listens on it; the caller sets the deadline."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        code = connection.connect_ex(os.fspath(path))
        if code == 0:
            return connection
        connection.close()
        if code not in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
            raise OSError(code, os.strerror(code), os.fspath(path))
        await anyio.sleep(POLL)
