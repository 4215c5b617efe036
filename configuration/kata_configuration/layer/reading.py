"""The bytes of a configuration: of its file and its drop-ins, unparsed, and their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kata_configuration.errors import ConfigurationError
from kata_configuration.layer import dropins
from kata_configuration.parse import source
from kata_configuration.parse.trust import Place, directories_of

if TYPE_CHECKING:
    from kata_configuration.diagnostics import Diagnostic


class Read(NamedTuple):
    """What was read. files: the base file first, then its drop-ins as they are merged.

    sha256: see `read`, in hexadecimal. places: the files, and the directories that they are in. unreadable:
    what is wrong with drop-ins that could not be read. skipped: files whose names are almost those of
    drop-ins.
    """

    files: tuple[source.Source, ...]
    sha256: str
    places: tuple[Place, ...]
    unreadable: tuple[Diagnostic, ...]
    skipped: tuple[Path, ...]


def read(path: Path) -> Read:
    """Read a configuration file and its drop-ins.

    The hash of a file without drop-ins is that of its bytes. With drop-ins it is that of the list of all
    files' hashes as sha256sum prints it: `sha256sum FILE DROP-IN... | sha256sum`.

    Raises:
        ConfigurationError: the file itself cannot be read. A faulty drop-in is in `unreadable` instead.
    """
    base = source.read(path)
    files = [base]
    unreadable: list[Diagnostic] = []
    places = [Place(path, base.status), *directories_of(path)]
    try:
        found = dropins.find(path)
    except ConfigurationError as error:
        unreadable += error.diagnostics
        found = dropins.Found((), ())
    places += found.directories
    for drop_in in found.files:
        try:
            read = source.read(drop_in)
        except ConfigurationError as error:
            unreadable += error.diagnostics
            continue
        files.append(read)
        places += [Place(drop_in, read.status), *directories_of(drop_in)]
    return Read(tuple(files), _hash_of(files), tuple(places), tuple(unreadable), found.skipped)


def _hash_of(files: list[source.Source]) -> str:
    hashes = [hashlib.sha256(file.content).hexdigest() for file in files]
    if len(hashes) == 1:
        return hashes[0]
    lines = "".join(f"{digest}  {file.path}\n" for digest, file in zip(hashes, files, strict=True))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
