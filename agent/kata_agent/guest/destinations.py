"""Where the destinations of mounts are once the symbolic links of a root file system are followed.

crun follows links to what exists only, and makes what is missing at a plain path. runc makes what a link
leads to as well, as images expect in which a volume's path is a link. Links are read here, within the root;
nothing is made.
"""

from __future__ import annotations

import errno
import os

_MOST_LINKS = 255  # runc's


def resolve(root: str, destinations: list[str]) -> list[str]:
    """The destinations, in order of mounting, without the links of the root on their way.

    What an earlier mount covers is not looked at: its links are crun's to follow when they are there.

    Raises:
        OSError: ELOOP.
    """
    resolved: list[str] = []
    for destination in destinations:
        resolved.append(_resolve(root, destination, set(resolved)))
    return resolved


def _resolve(root: str, destination: str, covered: set[str]) -> str:
    at: list[str] = []
    ahead = _parts(destination)
    links = 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            del at[-1:]
            continue
        path = "/" + "/".join((*at, part))
        target = _link(f"{root}{path}")
        if target is None:
            at.append(part)
            if path in covered:
                break
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), destination)
        if target.startswith("/"):
            at.clear()
        ahead = _parts(target) + ahead
    return "/" + "/".join(at + ahead)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _link(path: str) -> str | None:
    """Where a symbolic link leads; None for anything else, and for nothing."""
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise
