"""Did you mean: the known word that is closest to a misspelled one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

# How much closer than the next a word must be to be the one that is meant, of a likeness from 0 to 1.
MARGIN = 0.05

# Misspelled words that are compared in one examination of a file, at some milliseconds each; further ones get
# no suggestion.
MOST = 200

_left: ContextVar[list[int] | None] = ContextVar("_left", default=None)


@contextlib.contextmanager
def limited(most: int = MOST) -> Iterator[None]:
    """Compare at most so many words with the known ones within this context."""
    token = _left.set([most])
    try:
        yield
    finally:
        _left.reset(token)


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that resembles this one most, or None when none does.

    Case, surrounding space and the choice between "-" and "_" do not count as differences.
    """
    found = _matches(word, known)
    return found[0][1] if found else None


def unmistakable(word: str, known: Iterable[str]) -> bool:
    """Whether the closest known word is the only one that can be meant: no other comes near it."""
    found = _matches(word, known)
    if not found:
        return False
    best, name = found[0]
    bare = name.replace("_", "")
    return all(best - ratio > MARGIN or other.replace("_", "") == bare for ratio, other in found[1:])


def _matches(word: str, known: Iterable[str]) -> list[tuple[float, str]]:
    """Return up to three known words that resemble this one, each with its likeness, the closest first."""
    left = _left.get()
    if left is not None:
        if left[0] <= 0:
            return []
        left[0] -= 1
    import difflib  # only a misspelled word needs it

    names: dict[str, str] = {}
    for candidate in known:
        names.setdefault(_plain(candidate), candidate)
    plain = _plain(word[:100])
    found = difflib.get_close_matches(plain, names, n=3, cutoff=0.7)
    return [(difflib.SequenceMatcher(None, name, plain).ratio(), names[name]) for name in found]


def _plain(word: str) -> str:
    return word.strip().casefold().replace("-", "_")
