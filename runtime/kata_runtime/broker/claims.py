"""What one sandbox has and no other may have: a file for each, made exclusively, with its key in it.

The files lie in a directory of all sandboxes, one for each kind of thing. The rollback journal gives them
back. A sealed broker uses this too: it makes directories by a descriptor.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.rollback import RollbackJournal

UNDO = "claim"

_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


def take(path: str, key: str, journal: RollbackJournal, undo: str = UNDO) -> bool:
    """Take what a file stands for; whether this sandbox has it now.

    path: of the file, in a directory of the runtime's state directory, which is made where it is missing.
    key: the sandbox's.

    Raises:
        RequestRefusedError: the sandbox has as much as it may have. OSError.
    """
    if _is_ours(path, key):
        return True
    number = journal.push(undo, path=path, key=key)
    directory = os.path.dirname(path)
    while True:
        _make_directory(directory)
        try:
            file = os.open(path, _NEW, 0o600)
        except FileExistsError:
            journal.drop(number)
            return False
        except FileNotFoundError:
            continue  # another pod's end has removed the empty directory
        try:
            os.write(file, key.encode())
        except OSError:  # the file system is full: a file without a key would be nobody's to give back
            os.unlink(path)
            journal.drop(number)
            raise
        finally:
            os.close(file)
        return True


def _make_directory(path: str) -> None:
    above = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.mkdir(os.path.basename(path), 0o700, dir_fd=above)
    except FileExistsError:
        return
    finally:
        os.close(above)


def _is_ours(path: str, key: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(len(key) + 1) == key
    except FileNotFoundError:
        return False


def release(path: str, key: str) -> None:
    """Give back what a file stands for, unless it is another sandbox's by now. Raises OSError."""
    if _is_ours(path, key):
        os.unlink(path)
        try:
            os.rmdir(os.path.dirname(path))
        except OSError:
            pass  # others are in it
