"""Reads a file of the lock: requirements of pip, each with its hashes and with what needs it.

    anyio==4.16.0 ; python_full_version < '3.13' \\
        --hash=sha256:59bb… \\
        --hash=sha256:c66a…
        # via
        #   -c release/lock/development.txt
        #   kata-runtime-py (pyproject.toml)

Source: pip's requirements file format, and the comments that `uv pip compile` adds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.+?))? \\")
HASH = re.compile(r"    --hash=sha256:(?P<digest>[0-9a-f]{64})(?: \\)?")
NEEDED_BY = re.compile(r"    #(?: via)? +(?P<name>[\w.-]+)(?: \(pyproject\.toml\))?")
IGNORED = re.compile(r"#.*|    # via|    #   -c .*|")


@dataclass(frozen=True, slots=True)
class Locked:
    """One package. marker: where it is needed, empty for everywhere. hashes: SHA-256, one for each file."""

    name: str
    version: str
    marker: str
    hashes: list[str] = field(default_factory=list)
    needed_by: list[str] = field(default_factory=list)


def read(text: str) -> list[Locked]:
    """Return the packages of a file. Raises ValueError: a line is none that the lock has."""
    packages: list[Locked] = []
    for line in text.splitlines():
        if IGNORED.fullmatch(line):
            continue
        if match := REQUIREMENT.fullmatch(line):
            packages.append(Locked(match["name"], match["version"], match["marker"] or ""))
        elif packages and (match := HASH.fullmatch(line)):
            packages[-1].hashes.append(match["digest"])
        elif packages and (match := NEEDED_BY.fullmatch(line)):
            packages[-1].needed_by.append(match["name"])
        else:
            raise ValueError(f"not a line of a lock: {line!r}: write the lock with make lock")
    return packages
