"""The pictures of `kata-ctl seccomp report`, as SVG: what is let through, beside others, and call by call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from kata_hypervisor.seccomp.score import ESCAPE, HEAVY, REACH
from kata_hypervisor.seccomp.survey import Survey
from kata_runtime.ctl.seccomp_policy import ScoreRow

_WIDTH = 1000
_ROW, _TOP, _GAP = 26, 46, 12
_ESCAPE, _SCORE = _WIDTH - 100, _WIDTH - 20  # where the figures' columns end
_VALUE_ROOM = 110  # between the longest bar and the column of escapes
_MAX_CALLS = 400
_GRID = (0, 50, 100, 200, 300, 400)
_CELL, _PER_ROW = 15, 64

FONT_SIZE, SMALL_FONT_SIZE = 12.5, 11.5
_GLYPH = 0.62
"""Width of a character of a label, in font sizes: more than the average of wide bold fonts."""

CLASSES: tuple[tuple[str, frozenset[str] | None], ...] = (
    ("escape", ESCAPE),
    ("heavy", HEAVY),
    ("reach", REACH),
    ("other", None),
)


def bars(rows: Sequence[ScoreRow]) -> str:
    """One bar for each VMM: calls let through whatever their arguments, and those under conditions."""
    height = _TOP + len(rows) * _ROW + 12
    title = "System calls that each VMM's filter lets through, the best score first"
    scale = _Scale.beside([row.name for row in rows])
    parts = [
        *_frame(scale, height),
        *(part for place, row in enumerate(rows) for part in _bar(scale, place, row)),
    ]
    return _svg(height, title, parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where the bars are. left: of 0 calls, so that the longest label has room beside it."""

    left: float

    @classmethod
    def beside(cls, labels: Sequence[str]) -> _Scale:
        longest = max((len(label) for label in labels), default=0)
        return cls(_GAP + math.ceil(longest * _GLYPH * FONT_SIZE))

    def x(self, calls: int) -> float:
        """Where a bar of so many calls ends."""
        return self.left + calls / _MAX_CALLS * (_ESCAPE - _VALUE_ROOM - self.left)


def _frame(scale: _Scale, height: int) -> Iterator[str]:
    for calls in _GRID:
        x = scale.x(calls)
        yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 10}"/>'
        yield _text(x, _TOP - 12, str(calls), "axis", "middle")
    yield _text(scale.left, 14, "system calls let through", "head", "start")
    yield _text(_ESCAPE, 14, "escape", "head", "end")
    yield _text(_SCORE, 14, "score", "head", "end")


def _bar(scale: _Scale, place: int, row: ScoreRow) -> Iterator[str]:
    y = _TOP + place * _ROW
    kind = " ours" if row.ours else ""
    unfiltered = row.allowed if row.unfiltered is None else row.unfiltered
    middle, end = scale.x(unfiltered), scale.x(row.allowed)
    yield _text(scale.left - _GAP, y + 14, row.name, f"name{kind}", "end")
    yield _rectangle(scale.left, middle, y, f"open{kind}")
    yield _rectangle(middle, end, y, f"conditional{kind}")
    yield _text(end + 6, y + 15, str(row.allowed), f"value{kind}", "start")
    yield _text(_ESCAPE, y + 15, "-" if row.escape is None else str(row.escape), f"value{kind}", "end")
    yield _text(_SCORE, y + 15, f"{row.score:g}", f"value{kind}", "end")


def _rectangle(left: float, right: float, y: int, kind: str) -> str:
    width = right - left
    return f'<rect class="{kind}" x="{left:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 9}"/>'


def cells(survey: Survey, title: str) -> str:
    """One cell for each system call, by class: let through, let through under a condition, refused."""
    parts: list[str] = []
    y = 4
    for name, calls in _by_class(survey).items():
        allowed = sum(survey.calls[call].access != "closed" for call in calls)
        parts.append(_text(0, y + 13, name, "name", "start"))
        parts.append(_text(72, y + 13, f"{allowed} of {len(calls)}", "value", "start"))
        y += 20
        for place, call in enumerate(calls):
            column, row = place % _PER_ROW, place // _PER_ROW
            parts.append(_cell(column * _CELL, y + row * _CELL, call, survey.calls[call].access))
        y += (len(calls) + _PER_ROW - 1) // _PER_ROW * _CELL + 10
    return _svg(y, title, parts)


def _by_class(survey: Survey) -> Mapping[str, list[str]]:
    left = dict.fromkeys(survey.calls)
    found = {}
    for name, members in CLASSES:
        found[name] = [call for call in left if members is None or call in members]
        for call in found[name]:
            del left[call]
    return found


def _cell(x: int, y: int, call: str, access: str) -> str:
    size = _CELL - 3
    tip = f"<title>{escape(call)}: {access}</title>"
    return f'<rect class="{access}" x="{x}" y="{y}" width="{size}" height="{size}">{tip}</rect>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {_WIDTH} {height}">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"])
