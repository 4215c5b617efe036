"""Opening what containerd gave for a container's standard streams, and files of its image."""

from __future__ import annotations

import os
import stat

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

_LOG_FLAGS = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
)


def open_fifo(path: str, flags: int) -> int:
    """Open a FIFO. Raises OSError, and RequestRefusedError when it is something else."""
    # Looked at before it is opened: opening a device or a socket may have effects of its own.
    probe = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISFIFO(os.fstat(probe).st_mode):
            raise RequestRefusedError(f"{path} is not a FIFO")
        return os.open(f"/proc/self/fd/{probe}", flags | os.O_CLOEXEC)
    finally:
        os.close(probe)


def open_log(path: str) -> int:
    """Open a regular file to append to, made where it is missing. Raises as `open_fifo` does."""
    fd = os.open(path, _LOG_FLAGS, 0o640)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RequestRefusedError(f"{path} is not a regular file")
    return fd


def open_in_image(root: int, name: str, *, write: bool) -> int:
    """Open a regular file or block device below a directory, whatever links the image has.

    Raises:
        RequestFailedError: it cannot be opened. RequestRefusedError: it is something else.
    """
    access = os.O_RDWR if write else os.O_RDONLY
    try:
        fd = syscalls.open_in_root(root, name, access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise RequestFailedError(
            f"cannot open {name} in the image: {error.strerror}", error.errno or 0
        ) from None
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        os.close(fd)
        raise RequestRefusedError(f"{name} in the image is neither a regular file nor a block device")
    return fd
