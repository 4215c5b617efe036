"""Fixing what has exactly one right answer: in the text, so that comments and layout stay."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kata_configuration.diagnostics import Code, Diagnostic, Edit, Severity
from kata_configuration.judge.containerd import is_containerds
from kata_configuration.layer.layers import Files, Layer, file_layer, read_files
from kata_configuration.loading import Examination, containerds_diagnostics, examine_files
from kata_configuration.parse import source
from kata_configuration.tell import whole_file
from kata_configuration.tell.reports import printable

# Of one file's faults, so many are fixed in one run.
MAX_FIXES = 500

# What a fix must never bring about: then its answer was not the right one.
_SPOILT = frozenset(
    code.number for code in (Code.SYNTAX, Code.DUPLICATE, Code.ALIAS_CONFLICT, Code.ALIAS_REPEATED)
)


@dataclass(frozen=True, slots=True)
class Change:
    """A file, its text before and after, both with the newlines that the file has, and what was fixed."""

    path: Path
    before: str
    after: str
    fixed: tuple[Diagnostic, ...]

    def __str__(self) -> str:
        """Show the change as a unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(),
            self.after.splitlines(),
            str(self.path),
            str(self.path),
            lineterm="",
            n=1,
        )
        return "\n".join(map(printable, lines))


def find_changes(path: Path, *, check_host: bool) -> tuple[Change, ...]:
    """Work out what fixes a file and its drop-ins, without changing them.

    Raises:
        ConfigurationError: the file itself cannot be read.
    """
    files = read_files(path)
    if is_containerds(files.layers[0].tree):
        return _containerds_changes(files.layers[0], check_host)
    fixed: dict[str, list[Diagnostic]] = {}
    raw = {layer.name: _raw_text(Path(layer.name)) for layer in files.layers}
    before = dict(raw)
    examination = examine_files(files, check_host=check_host)
    for _ in range(MAX_FIXES):
        step = _one_step(examination, check_host)
        if step is None:
            break
        found, examination = step
        fixed.setdefault(found.path, []).append(found)
        raw[found.path] = _apply_raw(raw[found.path], found.edits)
    return tuple(Change(Path(name), before[name], raw[name], tuple(found)) for name, found in fixed.items())


def _containerds_changes(layer: Layer, check_host: bool) -> tuple[Change, ...]:
    """As `find_changes`, for containerd's own configuration: no fix of it is another's cause."""
    found = [item for item in containerds_diagnostics(layer, check_host=check_host) if item.edits]
    edits = [edit for item in found for edit in item.edits]
    fixed = file_layer(layer.kind, layer.name, _apply(layer.text, edits))
    if not edits or len(fixed.faults) > len(layer.faults):
        return ()  # such as two misspellings of one key, of which a table may have one
    before = _raw_text(Path(layer.name))
    after = _apply_raw(before, edits)
    return (Change(Path(layer.name), before, after, tuple(found)),)


def write(change: Change) -> None:
    """Replace the file by its fixed text, as a whole; a link stays a link, mode and owner stay.

    Raises:
        OSError: its directory cannot be written.
    """
    whole_file.rewrite(change.path, change.after.encode())


def _one_step(examination: Examination, check_host: bool) -> tuple[Diagnostic, Examination] | None:
    """Fix the first fault that can be fixed without harm; None when there is none left."""
    for found in examination.diagnostics:
        if not found.edits:
            continue
        files = _with_edits(examination.files, found)
        after = examine_files(files, check_host=check_host)
        if _is_better(examination, after, found):
            return found, after
    return None


def _with_edits(files: Files, found: Diagnostic) -> Files:
    layers = [
        file_layer(layer.kind, layer.name, _apply(layer.text, found.edits))
        if layer.name == found.path
        else layer
        for layer in files.layers
    ]
    return replace(files, layers=layers)


def _is_better(before: Examination, after: Examination, fixed: Diagnostic) -> bool:
    """Whether a fault is gone, and the text is none the worse.

    A table whose name was misspelled may show faults that nobody looked for before; nothing else may.
    """
    old, new = _tally(before), _tally(after)
    if any(new[key] > old.get(key, 0) for key in new if key[1] in _SPOILT):
        return False
    uncovered = fixed.code == Code.UNKNOWN_TABLE.number
    identity = _identity(fixed)
    return new.get(identity, 0) < old[identity] and (uncovered or _errors(after) <= _errors(before))


def _tally(examination: Examination) -> dict[tuple[str, str, str], int]:
    tally: dict[tuple[str, str, str], int] = {}
    for found in examination.diagnostics:
        tally[_identity(found)] = tally.get(_identity(found), 0) + 1
    return tally


def _identity(found: Diagnostic) -> tuple[str, str, str]:
    return found.path, found.code, found.key


def _errors(examination: Examination) -> int:
    return sum(found.severity is Severity.ERROR for found in examination.diagnostics)


def _apply(text: str, edits: Iterable[Edit]) -> str:
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _apply_raw(raw: str, edits: Iterable[Edit]) -> str:
    """Apply edits, whose offsets count CR LF as one character, to a text that has them."""
    newline = "\r\n" if "\r\n" in raw else "\n"
    mapped = (
        Edit(_raw_offset(raw, edit.start), _raw_offset(raw, edit.end), edit.text.replace("\n", newline))
        for edit in edits
    )
    return _apply(raw, list(mapped))


def _raw_offset(raw: str, offset: int) -> int:
    position = 0
    for line in raw.split("\r\n"):
        if offset <= len(line):
            return position + offset
        position += len(line) + 2
        offset -= len(line) + 1
    return len(raw)


def _raw_text(path: Path) -> str:
    return source.read(path).content.decode()
