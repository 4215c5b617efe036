"""Directories below which something may be opened, each held by a descriptor since it was learned.

What is opened is found from the descriptor, beneath it and without following a link: a directory or a link
that is put in the way later leads nowhere else.
"""

from __future__ import annotations

import os

from kata_runtime import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Opens one file, with flags and the mode that it gets where it is made. Raises OSError.
    Opener = Callable[[int, int], int]

_HOLD = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class HeldDirectories:
    """Directories of the host, by their real names; never the root."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def add(self, path: str) -> None:
        """Hold a directory; nothing to do when it does not exist, or lies in one that is held."""
        real = os.path.realpath(path)
        if real == "/" or self._holder(real + "/") is not None:
            return
        try:
            self._held[real] = os.open(real, _HOLD)
        except (FileNotFoundError, NotADirectoryError):
            return

    def opener(self, path: str) -> Opener | None:
        """How the file at a path is opened; None when it lies in none of the directories."""
        # The real name says where to look from; the file itself is found from there, whatever it is by then.
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        holder = self._holder(real)
        if holder is None:
            return None
        directory, inside = self._held[holder], real[len(holder) + 1 :]
        return lambda flags, mode: syscalls.open_beneath(directory, inside, flags, mode)

    def _holder(self, real: str) -> str | None:
        return next((held for held in self._held if real.startswith(held + "/")), None)


def by_name(path: str) -> Opener:
    """How a file is opened that is trusted by its name: links may lead to it, but it is none itself."""
    return lambda flags, mode: os.open(path, flags | os.O_NOFOLLOW, mode)
