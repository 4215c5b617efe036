"""Why the file in force is the one: each rule of discovery, and what it comes to on this host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata_configuration.layer import discovery


@dataclass(frozen=True, slots=True)
class Place:
    """A rule of discovery and what it comes to here: the path that it names, or why it names none."""

    rule: str
    path: Path | None
    state: str


def survey(
    config_path: str | None, environ: Mapping[str, str], defaults: Sequence[Path] = discovery.DEFAULT_FILES
) -> Iterator[Place]:
    """Yield the places where a configuration file may be, in the order in which `discover` looks."""
    named = environ.get(discovery.ENVIRONMENT)
    explicit = (
        (discovery.CONFIG_PATH, config_path, "containerd's to say"),
        (discovery.ENVIRONMENT, named, "is not set"),
    )
    taken = False
    for rule, name, without in explicit:
        path = Path(name) if name else None
        yield Place(rule, path, _state(path is not None, taken, without))
        taken = taken or path is not None
    for path in defaults:
        present = os.path.lexists(path)
        yield Place(discovery.DEFAULT, path, _state(present, taken, "does not exist"))
        taken = taken or present


def _state(usable: bool, taken: bool, without: str) -> str:
    if not usable:
        return without
    return "not looked at" if taken else "chosen"
