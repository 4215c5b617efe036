"""Unix sockets by path: a name has 107 bytes at most."""

from __future__ import annotations

import os
from pathlib import Path

from kata_hypervisor.errors import HostUnfitError

PATH_LIMIT = 107
"""Bytes of a unix socket's path: sockaddr_un(7) has 108 with the terminator."""


def check_path(path: Path, what: str) -> Path:
    """Return the path of a socket that a VMM makes. Raises HostUnfitError when it is too long."""
    length = len(os.fsencode(path))
    if length > PATH_LIMIT:
        raise HostUnfitError(
            f"cannot make {what}: the path {path} has {length} bytes, a unix socket's has at most "
            f"{PATH_LIMIT}; give the sandbox a directory with a shorter path"
        )
    return path
