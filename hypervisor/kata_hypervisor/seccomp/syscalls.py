"""System calls by name and by number, from a table of our own.

Neither the C library nor libseccomp is asked: both know only the calls that existed when they were built.
The tables are the kernel headers' facts, up to Linux 6.18. Standard library only: the broker names calls.
"""

from __future__ import annotations

import os

ARCHITECTURES = ("x86_64", "aarch64")

_TABLES = os.path.join(os.path.dirname(__file__), "tables")
_NATIVE = os.uname().machine  # asked once: a process under a filter may not be able to
_numbers: dict[str, dict[str, int]] = {}
_names: dict[str, dict[int, str]] = {}


def native() -> str:
    """This machine's architecture, by the name that its table has (also where there is none)."""
    return _NATIVE


def numbers(arch: str = "x86_64") -> dict[str, int]:
    """Every call of an architecture, by name. Raises LookupError for an architecture without a table."""
    if arch not in _numbers:
        if arch not in ARCHITECTURES:
            raise LookupError(f"no table of system calls for {arch!r}: there are {', '.join(ARCHITECTURES)}")
        with open(os.path.join(_TABLES, f"{arch}.txt"), encoding="ascii") as table:
            rows = [line.split() for line in table if not line.startswith("#")]
        _numbers[arch] = {name: int(number) for number, name in rows}
        _names[arch] = {number: name for name, number in _numbers[arch].items()}
    return _numbers[arch]


def number_of(name: str, arch: str = "x86_64") -> int | None:
    """The number of a call, or None where the architecture has no call of this name."""
    return numbers(arch).get(name)


def name_of(number: int, arch: str = "x86_64") -> str | None:
    """The name of a call, or None where the table has no call of this number."""
    numbers(arch)
    return _names[arch].get(number)


def preload(arch: str = "x86_64") -> None:
    """Read the table now, for a process that cannot open files later."""
    numbers(arch)
