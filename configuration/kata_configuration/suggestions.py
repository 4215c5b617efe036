"""Did you mean: the known word that is closest to a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that resembles this one most, or None when none does.

    Case, surrounding space and the choice between "-" and "_" do not count as differences.
    """
    import difflib  # only a misspelt word needs it

    spellings: dict[str, str] = {}
    for candidate in known:
        spellings.setdefault(_plain(candidate), candidate)
    found = difflib.get_close_matches(_plain(word[:100]), spellings, n=1, cutoff=0.7)
    return spellings[found[0]] if found else None


def _plain(word: str) -> str:
    return word.strip().casefold().replace("-", "_")
