"""Source packages of the host's distribution, unpacked as their authors made them.

Apt runs as for a guest image: with the host's sources and keyrings, but lists of its own. It checks what it
fetches against the signed lists.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from kata_runtime.image import command
from kata_runtime.image.errors import PackageError, ToolError

ETC = Path("/etc/apt")
_VERSION = re.compile(r"^Version: (\S+)$", re.MULTILINE)
_TYPES = re.compile(r"^Types:.*$", re.MULTILINE | re.IGNORECASE)
_DEB = re.compile(r"^\s*deb(?=\s)", re.MULTILINE)


def unpack(name: str, cache: Path, place: Path) -> None:
    """Put the upstream tree of a source package at a place, which does not exist.

    cache: a directory for apt's state and the archive.

    Raises:
        PackageError: no source of the host has it.
    """
    options = _options(cache)
    archives = cache / name
    try:
        command.run(["apt-get", *options, "update", "-qq"])
        shown = command.run(["apt-cache", *options, "showsrc", "--only-source", name]).decode()
        _fetch(name, _VERSION.findall(shown), options, archives)
    except ToolError as error:
        raise PackageError(f"cannot fetch the sources of {name}: {error}: check the network") from error
    found = sorted(archives.glob("*.orig.tar.*"))
    if len(found) != 1:
        raise PackageError(f"the source package {name} has {len(found)} upstream archives: expected one")
    with tarfile.open(found[0]) as archive:
        archive.extractall(archives / "tree", filter="tar")
    (tree,) = (archives / "tree").iterdir()
    shutil.move(tree, place)


def _fetch(name: str, versions: Sequence[str], options: Sequence[str], archives: Path) -> None:
    """Fetch the first of these versions that can be had: a mirror may list one whose files it has not."""
    for version in versions:
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir(parents=True)
        # Apt saves a source package in its working directory.
        enter = ["env", "-C", str(archives), "apt-get", *options]
        try:
            command.run([*enter, "source", "-qq", "--download-only", f"{name}={version}"])
        except ToolError:
            if version == versions[-1]:
                raise
        else:
            return
    raise PackageError(f"no source of the host has the source package {name}")


def source_entries(text: str, *, deb822: bool) -> str:
    """Apt's sources with source packages in place of programs."""
    return _TYPES.sub("Types: deb-src", text) if deb822 else _DEB.sub("deb-src", text)


def _options(cache: Path) -> list[str]:
    parts = cache / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    (cache / "lists/partial").mkdir(parents=True, exist_ok=True)
    for path in [ETC / "sources.list", *(ETC / "sources.list.d").glob("*")]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            text = source_entries(path.read_text(encoding="utf-8"), deb822=path.suffix == ".sources")
            (parts / path.name).write_text(text, encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": parts,
        "Dir::State::lists": cache / "lists",
        "APT::Sandbox::User": "",  # the user that apt would change to cannot write our directories
    }
    return [option for key, value in settings.items() for option in ("-o", f"{key}={value}")]
