"""Who may change a configuration: root and the user that runs this, and nobody else.

One rule for every way to a file: containerd's ConfigPath, KATA_CONF_FILE, the default places, drop-ins, lint.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from kata_configuration.diagnostics import Code, Diagnostic

Uids = frozenset[int]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Place(NamedTuple):
    """A file or directory that a configuration is read from, and its status when it was opened."""

    path: Path
    status: os.stat_result


def trusted_uids() -> Uids:
    """Return the users who may change a configuration."""
    return frozenset({0, os.geteuid()})


def directories_of(path: Path) -> Iterator[Place]:
    """Yield the directory that a file's name is in, and the one of the file that it is a link to."""
    for directory in dict.fromkeys((path.absolute().parent, Path(os.path.realpath(path)).parent)):
        try:
            yield Place(directory, directory.stat())
        except OSError:
            continue  # the file could be read: its directory went since


def check(places: Iterable[Place], trusted: Uids) -> Iterator[Diagnostic]:
    """Yield a diagnostic for each place that others than the trusted users may change."""
    seen: set[tuple[int, int]] = set()
    for place in places:
        identity = (place.status.st_dev, place.status.st_ino)
        if identity not in seen and (found := fault_of(place, trusted)):
            yield found
        seen.add(identity)


def fault_of(place: Place, trusted: Uids) -> Diagnostic | None:
    """Say who else may change a place, or put other files into it; None when nobody may."""
    path, status = place
    directory = stat.S_ISDIR(status.st_mode)
    code = Code.WRITABLE if directory else Code.UNTRUSTED
    if status.st_uid not in trusted:
        message = f"is owned by user {status.st_uid}, who is neither root nor the user that reads it"
        return Diagnostic.of(code, str(path), message, f"chown root {path}")
    # In a sticky directory, a file is replaced by its owner only.
    if status.st_mode & _OTHERS_WRITE and not (directory and status.st_mode & stat.S_ISVTX):
        what = "lets others put files into it" if directory else "lets others write"
        message = f"has the mode {stat.S_IMODE(status.st_mode):04o}, which {what}"
        return Diagnostic.of(code, str(path), message, f"chmod go-w {path}")
    return None
