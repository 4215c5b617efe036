"""What a suite's tests came to here and with runc, and what docs/like-runc.md says of the differences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from like_runc_suites import PASSED, Outcomes

ABSENT = "no such test"
_ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<runc>[^|]+) \| (?P<ours>[^|]+) \| (?P<why>.+) \|$")


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that came to one thing with runc and to another here. name: SUITE PLACE TEST."""

    name: str
    runc: str
    ours: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One suite at one place. alike: tests with one outcome. passed: those of them that passed."""

    suite: str
    place: str
    alike: int
    passed: int
    differences: tuple[Difference, ...]


def compare(suite: str, place: str, runc: Outcomes, ours: Outcomes) -> Comparison:
    """Compare test by test."""
    names = sorted({*runc, *ours})
    pairs = {name: (runc.get(name, ABSENT), ours.get(name, ABSENT)) for name in names}
    alike = [one for one, other in pairs.values() if one == other]
    differences = tuple(
        Difference(f"{suite} {place} {name}", *pair) for name, pair in pairs.items() if pair[0] != pair[1]
    )
    passed = sum(1 for one in alike if one == PASSED or one.startswith("status 0"))
    return Comparison(suite, place, len(alike), passed, differences)


def read_list(page: str) -> dict[str, str]:
    """Patterns of names of known differences with the reason: rows whose first cell is in backquotes."""
    rows = (_ROW.match(line) for line in page.splitlines())
    return {row["name"]: row["why"] for row in rows if row}


def explanation(difference: Difference, known: Mapping[str, str]) -> str:
    """Why, as the page says it; empty where it does not."""
    return next((why for pattern, why in known.items() if fnmatchcase(difference.name, pattern)), "")


def describe(found: Sequence[Comparison], known: Mapping[str, str]) -> tuple[str, bool]:
    """The table, each difference with its reason, and whether all have one."""
    lines = ["| suite | where | alike | of them passed | other than with runc |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.suite} | {one.place} | {one.alike} | {one.passed} | {len(one.differences)} |"
        for one in found
    ]
    differences = [difference for one in found for difference in one.differences]
    if differences:
        lines += ["", "| test | runc | here | why |", "|---|---|---|---|"]
        lines += [
            f"| `{one.name}` | {one.runc} | {one.ours} | {explanation(one, known) or 'NOT EXPLAINED'} |"
            for one in differences
        ]
    return "\n".join(lines), all(explanation(one, known) for one in differences)
