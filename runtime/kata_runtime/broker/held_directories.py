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
        # By name: the descriptor, and how many names below it a file is; 0 for any number.
        self._held: dict[str, tuple[int, int]] = {}

    def add(self, path: str, depth: int = 0) -> None:
        """Hold a directory; nothing to do when it does not exist, or is held.

        depth: 1 for files in it, 2 for files in the directories in it, 0 for all that are below it.
        """
        real = os.path.realpath(path)
        if real == "/" or real in self._held:
            return
        try:
            self._held[real] = (os.open(real, _HOLD), depth)
        except (FileNotFoundError, NotADirectoryError):
            return

    def opener(self, path: str) -> Opener | None:
        """How the file at a path is opened; None when it lies in none of the directories."""
        # The real name says where to look from; the file itself is found from there, whatever it is by then.
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        holder = self._holder(real)
        if holder is None:
            return None
        (directory, _), inside = self._held[holder], real[len(holder) + 1 :]
        return lambda flags, mode: syscalls.open_beneath(directory, inside, flags, mode)

    def _holder(self, real: str) -> str | None:
        for held, (_, depth) in self._held.items():
            inside = real.removeprefix(held + "/")
            if inside != real and depth in (0, inside.count("/") + 1):
                return held
        return None


def by_name(path: str) -> Opener:
    """How a file is opened that is trusted by its name: links may lead to it, but it is none itself."""
    return lambda flags, mode: os.open(path, flags | os.O_NOFOLLOW, mode)
