"""Writing a file as a whole: nobody reads half of it, and nobody what its mode does not let him.

The file that takes its place is its owner's alone until all is as it is to be; its name cannot be guessed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

NEW_MODE = 0o644


def replace(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Put a file in a path's place. owner: user and group; None for this process's.

    Raises:
        OSError: its directory cannot be written, which names `path`, or the file system is full; what was
            there stays.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if owner not in (None, (os.geteuid(), os.getegid())):
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def rewrite(path: Path, content: bytes) -> None:
    """Give a file another content; a link stays a link, mode and owner stay. Raises as `replace`."""
    target = Path(os.path.realpath(path))
    try:
        found = target.stat()
    except FileNotFoundError:
        replace(target, content, NEW_MODE)
    else:
        replace(target, content, found.st_mode & 0o7777, (found.st_uid, found.st_gid))
