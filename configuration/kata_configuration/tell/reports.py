"""Diagnostics for people and for tools: text with the offending line, JSON, and GitHub's annotations.

What a file holds is hostile: nothing of it reaches a terminal or a line-based format unescaped.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from kata_configuration.diagnostics import Diagnostic, Severity

# Of a longer line, the part around the fault is shown.
MAX_EXCERPT = 100

_RED, _YELLOW, _CYAN, _BOLD, _GREEN, _RESET = (
    "\x1b[1;31m",
    "\x1b[1;33m",
    "\x1b[1;36m",
    "\x1b[1m",
    "\x1b[32m",
    "\x1b[0m",
)
_COLOURS = {Severity.ERROR: _RED, Severity.WARNING: _YELLOW, Severity.NOTE: _CYAN}
_GITHUB_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def text(found: Diagnostic, *, colour: bool = False) -> str:
    """Render one diagnostic: a line, then the offending line of the file with a caret under what is meant."""
    line = str(found)
    if colour:
        level = f"{found.severity.value}[{found.code}]"
        line = line.replace(level, f"{_COLOURS[found.severity]}{level}{_RESET}", 1)
        place, separator, rest = line.partition(": ")
        line = f"{_BOLD}{place}{_RESET}{separator}{rest}"
    if not found.excerpt.strip():
        return line
    return "\n".join([line, *_excerpt(found, colour)])


def json_report(found: Iterable[Diagnostic], files: Sequence[str]) -> str:
    """Render all as one JSON object: version, files, diagnostics, and their numbers by severity."""
    diagnostics = list(found)
    document = {
        "version": 1,
        "files": list(files),
        "diagnostics": [_plain(diagnostic) for diagnostic in diagnostics],
        "summary": {severity.value: count for severity, count in tally(diagnostics).items()},
    }
    return json.dumps(document, indent=2)


def github(found: Diagnostic) -> str:
    """Render one diagnostic as a workflow command of GitHub Actions.

    Source: GitHub's documentation, "Workflow commands for GitHub Actions", with actions/toolkit's escapes.
    """
    properties = {"file": found.path}
    if found.line:
        properties |= {"line": str(found.line), "col": str(found.column)}
        if found.length:
            properties |= {"endLine": str(found.line), "endColumn": str(found.column + found.length)}
    properties["title"] = f"{found.code}{' [security]' if found.security else ''}"
    fields = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
    return f"::{_GITHUB_LEVELS[found.severity]} {fields}::{_escaped(sentence(found))}"


def printable(line: str) -> str:
    """Return a line of a file as it may be shown on a terminal, character by character."""
    return "".join(
        char if char.isprintable() else " " if char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in line
    )


def sentence(found: Diagnostic) -> str:
    """Return the key, what is wrong with it, and what to do."""
    key = f"{found.key}: " if found.key else ""
    return f"{key}{found.message}" + (f" ({found.hint})" if found.hint else "")


def tally(found: Iterable[Diagnostic]) -> dict[Severity, int]:
    """Count diagnostics by severity; each severity is there."""
    counts = dict.fromkeys(Severity, 0)
    for diagnostic in found:
        counts[diagnostic.severity] += 1
    return counts


def _plain(found: Diagnostic) -> dict[str, object]:
    edits = [edit._asdict() for edit in found.edits]
    return asdict(found) | {"severity": found.severity.value, "edits": edits}


def _excerpt(found: Diagnostic, colour: bool) -> list[str]:
    begin = max(found.column - 1 - MAX_EXCERPT // 2, 0) if len(found.excerpt) > MAX_EXCERPT else 0
    shown = found.excerpt[begin : begin + MAX_EXCERPT]
    start = found.column - 1 - begin
    before, meant = shown[:start], shown[start : start + found.length]
    caret = "^" * max(_width(meant), 1)
    number = f"{found.line:5d} | "
    mark = f"{_GREEN}{caret}{_RESET}" if colour else caret
    return [number + printable(shown), " " * (len(number) - 2) + "| " + " " * _width(before) + mark]


def _width(part: str) -> int:
    """Return how many columns of a terminal a part of a line takes."""
    marks = sum(unicodedata.combining(char) != 0 for char in part)
    return len(part) - marks + sum(unicodedata.east_asian_width(char) in "WF" for char in part)


def _escaped(value: str, more: str = "") -> str:
    return "".join(
        f"%{ord(char):02X}" if char in "%\r\n" + more else char if char.isprintable() else ascii(char)[1:-1]
        for char in value
    )
