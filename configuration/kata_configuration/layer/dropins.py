"""Drop-ins: config.d/*.toml beside a configuration file, and beside the file that it is a link to.

Only names that end in .toml and do not begin with a dot count, so editors' copies and the ..data of a
mounted Kubernetes ConfigMap do not; links are followed, because such a mount is nothing but links.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from kata_configuration.diagnostics import Code
from kata_configuration.parse.source import fault, unreadable
from kata_configuration.parse.trust import Place

DIRECTORY = "config.d"
SUFFIX = ".toml"


class Found(NamedTuple):
    """The drop-ins of a file, in the order in which they are merged.

    directories: those that they are in. skipped: files there whose names are almost those of drop-ins.
    """

    files: tuple[Path, ...]
    directories: tuple[Place, ...]
    skipped: tuple[Path, ...] = ()


def find(path: Path) -> Found:
    """Return the drop-ins of a configuration file.

    They are merged by name; of two with the same name, the one beside the given path comes last and so wins.
    A directory that is reached in both ways is read once.

    Raises:
        ConfigurationError: a directory cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    found: list[tuple[str, int, Path]] = []
    places: list[Place] = []
    skipped: list[Path] = []
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
        places.append(Place(directory, status))
        names = _names(directory, status)
        found += [(name, -rank, directory / name) for name in names if _counts(name)]
        skipped += [directory / name for name in names if _almost_counts(name)]
    return Found(tuple(file for _, _, file in sorted(found)), tuple(places), tuple(sorted(skipped)))


def is_drop_in(path: Path) -> bool:
    """Whether a path is one that some configuration file beside its directory takes as a drop-in."""
    return path.absolute().parent.name == DIRECTORY and _counts(path.name)


def _names(directory: Path, status: os.stat_result) -> list[str]:
    if not stat.S_ISDIR(status.st_mode):
        raise fault(Code.UNREADABLE, directory, "is not a directory", "make it one, with drop-ins in it")
    try:
        return os.listdir(directory)
    except OSError as error:
        raise unreadable(directory, error) from None


def _counts(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def _almost_counts(name: str) -> bool:
    """Whether somebody may think that a file is a drop-in, or has made it none by its name on purpose."""
    return SUFFIX in name.lower() and not name.startswith(".") and not _counts(name)
