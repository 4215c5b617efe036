"""How long a regular expression can take: Python's matching tries every choice, and choices multiply."""

from __future__ import annotations

import re

# More than one pattern of annotations needs, and with names of 50 characters still a matter of milliseconds.
MAX_CHOICES = 4

_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_OPENING = re.compile(r"\(\?(?:P?<\w+>|<?[=!]|[a-zA-Z-]*:|[a-zA-Z-]+(?=\))|#[^)]*)")
_TOKEN = re.compile(r"(?P<repeat>[*+?]|\{\d*,?\d*\})|(?P<mark>[()|])|.", re.DOTALL)


def is_slow(pattern: str) -> bool:
    """Whether a valid pattern has too many repetitions and alternatives, or one within a repetition."""
    plain = _OPENING.sub("(", _ATOM.sub("x", pattern))
    groups = [_Group()]
    inner, repeated = 0, False  # the choices of the last atom, and whether it is repeated already
    for token in _TOKEN.finditer(plain):
        if token["repeat"]:
            if not repeated:
                groups[-1].choices += 1 if inner == 0 or token[0] == "?" else MAX_CHOICES
            repeated = True  # what follows a repetition makes it lazy or possessive
            continue
        repeated, inner = False, 0
        if token["mark"] == "(":
            groups.append(_Group())
        elif token["mark"] == ")":
            inner = groups.pop().total
            groups[-1].choices += inner
        elif token["mark"] == "|":
            groups[-1].next_alternative()
    return groups[0].total > MAX_CHOICES


class _Group:
    """The choices of a group: those of its worst alternative, and which one it is."""

    def __init__(self) -> None:
        self.choices = 0
        self._worst = -1

    def next_alternative(self) -> None:
        self._worst = max(self._worst, self.choices)
        self.choices = 0

    @property
    def total(self) -> int:
        return self.choices if self._worst < 0 else max(self._worst, self.choices) + 1
