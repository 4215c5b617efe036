"""Versions of a VMM that this runtime was tested against, and the warning about others."""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


class Supported(NamedTuple):
    """A closed range of versions. oldest, newest: "51.1"; a later patch of the newest is within."""

    oldest: str
    newest: str

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}"

    def version_warning(self, program: str, version: str) -> str | None:
        """Return a warning about a version outside of the range, None for one within."""
        number, oldest, newest = numbers_of(version), numbers_of(self.oldest), numbers_of(self.newest)
        assert oldest is not None
        assert newest is not None
        if number is None:
            return f"cannot read a version in {version!r}, which {program} reports; tested: {self}"
        if oldest <= number and number[:2] <= newest[:2]:
            return None
        return f"{program} {version} was not tested with this runtime; tested: {self}"


def numbers_of(text: str) -> tuple[int, int, int] | None:
    """Return the first version in a text, "Firecracker v1.12.1" or "54.0"; None when there is none."""
    found = _NUMBERS.search(text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None
