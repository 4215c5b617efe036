"""Drop-ins: config.d/*.toml beside a configuration file, and beside the file that it is a link to.

Only names that end in .toml and do not begin with a dot count, so editors' copies and the ..data of a
mounted Kubernetes ConfigMap do not; links are followed, because such a mount is nothing but links.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kata_configuration.diagnostics import Code
from kata_configuration.parse.source import fault, require_trusted, unreadable

DIRECTORY = "config.d"
SUFFIX = ".toml"


def find(path: Path, *, trusted_only: bool = False) -> tuple[Path, ...]:
    """Return the drop-ins of a configuration file, in the order in which they are merged.

    That is by name; of two with the same name, the one beside the given path comes last and so wins. A
    directory that is reached in both ways is read once.

    Raises:
        ConfigurationError: a directory cannot be read, or with `trusted_only`, others than root may write it.
    """
    seen: set[tuple[int, int]] = set()
    found: list[tuple[str, int, Path]] = []
    for rank, base in enumerate((path, Path(os.path.realpath(path)))):
        directory = base.parent / DIRECTORY
        try:
            status = os.stat(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise unreadable(directory, error) from None
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [(name, -rank, directory / name) for name in _names(directory, status, trusted_only)]
    return tuple(file for _, _, file in sorted(found))


def is_drop_in(path: Path) -> bool:
    """Whether a path is one that some configuration file beside its directory takes as a drop-in."""
    return path.absolute().parent.name == DIRECTORY and _counts(path.name)


def _names(directory: Path, status: os.stat_result, trusted_only: bool) -> list[str]:
    if not stat.S_ISDIR(status.st_mode):
        raise fault(Code.UNREADABLE, directory, "is not a directory", "make it one, with drop-ins in it")
    if trusted_only:
        require_trusted(status, directory)
    try:
        return [name for name in os.listdir(directory) if _counts(name)]
    except OSError as error:
        raise unreadable(directory, error) from None


def _counts(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")
