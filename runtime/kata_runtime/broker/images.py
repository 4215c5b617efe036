"""Images of containers' root file systems: made by a program of its own, opened by their names.

Both are asked for after the seal too, when the shim may be a guest's. So the broker says what is run, and the
shim only for which of its own mounts; and it opens no path, but a name: the hash of all that is in the image
(`rootfs_image.py`), which nobody knows who does not know the content.
"""

from __future__ import annotations

import os
import sys

from kata_runtime.broker.errors import RequestFailedError

ROLE = "rootfs-image"
CACHE = "/var/lib/kata-containers/rootfs-images"
SUFFIX = ".erofs"
PROGRAM = os.path.join(os.path.dirname(__file__), "rootfs_image.py")


def command(root: str) -> list[str]:
    """The command line of the program that makes an image of a mounted root file system."""
    return [sys.executable, "-IS", PROGRAM, root, CACHE]


def open_image(name: str) -> tuple[int, int]:
    """Open an image to read; return the descriptor and the size in bytes. Raises RequestFailedError."""
    path = os.path.join(CACHE, name + SUFFIX)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RequestFailedError(f"cannot open {path}: {error.strerror}", error.errno or 0) from None
    return fd, os.fstat(fd).st_size
