"""Where a template is on the host: made beside its place, put there in one step, removed file by file.

Nobody sees half of one. Who starts a machine from the old one meanwhile keeps it: its files are open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from kata_runtime.errors import StateError
from kata_runtime.syscalls import exchange


class TemplateStore:
    """The place of one template. path: an absolute path of a directory, which need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Keep others from changing it meanwhile.

        Raises:
            StateError: another process does.
        """
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"cannot change the template in {self.path}: another process is changing it; wait for that"
            ) from None
        else:
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """Give an empty directory for a new one; it is removed, with what was not published."""
        directory = self._beside(secrets.token_hex(8))
        directory.mkdir(mode=0o700)
        try:
            yield directory
        finally:
            remove(directory)

    def publish(self, directory: Path) -> None:
        """Put a directory that was made there in the template's place; an old one takes its place."""
        try:
            os.rename(directory, self.path)
        except OSError:
            if not self.path.is_dir():
                raise
            exchange(directory, self.path)

    def destroy(self) -> bool:
        """Remove the template; return whether there was one."""
        gone = self._beside(secrets.token_hex(8))
        try:
            os.rename(self.path, gone)
        except FileNotFoundError:
            return False
        remove(gone)
        return True

    def _beside(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}")


def remove(directory: Path) -> None:
    """Remove a template's directory: regular files of one level and itself, nothing else; absent is well.

    Raises:
        OSError: there is something else in it.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        path = directory / name
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(
                f"cannot remove {path}: a template has regular files only, and it is none; remove it by hand"
            )
        path.unlink()
    directory.rmdir()
