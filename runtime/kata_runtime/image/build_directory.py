"""Where an image grows: beside its place, under a lock, and moved there in one step."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kata_runtime.image.errors import OutputError
from kata_runtime.syscalls import exchange


@contextmanager
def locked(directory: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a directory, which is made when it does not exist. The kernel frees it if we die.

    waiting: called once when another process holds it, before we wait.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def build_directory(output: Path, waiting: Callable[[], None]) -> Iterator[Path]:
    """Give an empty directory on the output's filesystem; what a killed build left there is removed first."""
    directory = output.parent / f".{output.name}.build"
    with locked(output.parent, waiting):
        try:
            _remove(directory)
            directory.mkdir(mode=0o700)
            yield directory
        finally:
            _remove(directory)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def publish(new: Path, output: Path) -> None:
    """Put a finished directory in the output's place; whoever looks sees the old one or the new one, whole.

    Raises:
        OutputError: the filesystem cannot exchange two directories.
    """
    for path in new.iterdir():
        _sync(path)
    _sync(new)
    try:
        os.rename(new, output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(new, output)
    _sync(output.parent)


def _exchange(new: Path, output: Path) -> None:
    try:
        exchange(new, output)
    except OSError as error:
        raise OutputError(
            f"cannot replace {output} in one step: {error.strerror}: remove it first, or choose another "
            "--output"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
