"""From a file of another Kata runtime to one of ours: each finding is corrected or dropped, with a reason.

It knows no keys: the models and the removed keys have what became of one, by way of the findings. It works on
the text, so that comments and layout stay; the comment above a statement goes with it, or moves with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from kata_configuration.diagnostics import (
    Code,
    Diagnostic,
    Edit,
    Finding,
    Fix,
    KeyPath,
    Loss,
    Severity,
    key_name,
    quoted,
)
from kata_configuration.judge.placing import place_finding
from kata_configuration.layer.layers import Files, Kind, Layer, file_layer, line_of
from kata_configuration.loading import Examination, examine_files
from kata_configuration.models import TABLES, own_path
from kata_configuration.parse.toml_text import key_text, value_text
from kata_configuration.tell import facts, template

# What is renamed, moved or selected may itself have to change: rounds until nothing does.
MAX_ROUNDS = 20

# What nothing here honours, or asks for nothing: it is dropped.
_DROPPED = frozenset(
    {
        Code.INERT,
        Code.UNSUPPORTED,
        Code.UNPROTECTED,
        Code.FOREIGN_KEY,
        Code.FOREIGN_CONFINEMENT,
        Code.ALIAS_REPEATED,
    }
)
_DEAD_ENTRIES = frozenset({Code.ENTRY_DEAD, Code.ENTRY_MALFORMED})


class Weight(IntEnum):
    """How much a change matters, the heaviest first."""

    PROTECTION = 0
    LOST = 1
    CHANGED = 2
    HARMLESS = 3


@dataclass(frozen=True, slots=True)
class Change:
    """One change, with its reason. line: of the source, from 1; 0 for what the source does not have."""

    line: int
    what: str
    reason: str
    weight: Weight = Weight.CHANGED

    def __str__(self) -> str:
        """Write it on one line."""
        return f"{self.what}: {self.reason}"


class Migration(NamedTuple):
    """The new text, every change in the order of the source, and what is left to decide or to look at.

    The text is empty where the source is not TOML.
    """

    text: str
    changes: tuple[Change, ...]
    left: tuple[Diagnostic, ...]

    @property
    def complete(self) -> bool:
        """Whether the new text loads, and nothing is lost that the source asked for."""
        lost = any(change.weight <= Weight.LOST for change in self.changes)
        return not lost and not any(found.severity is Severity.ERROR for found in self.left)


class _Answer(NamedTuple):
    """What is done about a finding.

    edits: of the text. replaces: the path that then has a value, or (). weight: of the change.
    """

    edits: tuple[Edit, ...]
    what: str
    reason: str
    replaces: KeyPath = ()
    weight: Weight = Weight.CHANGED


def migrate(text: str, heading: str, output: Path, origin: Path | None = None) -> Migration:
    """Turn a file's text, with plain newlines, into one of ours.

    heading: what the new text begins with. output, origin: what diagnostics call the new text and the old
    one; neither is read or written.
    """
    name = str(output)
    source = file_layer(Kind.FILE, name, text)
    if source.faults:  # what cannot be read cannot be kept: nothing is made of it
        return Migration("", (), _examine(replace(source, name=str(origin or output))).diagnostics)
    changes: list[Change] = []
    examination = _examine(source)
    for _ in range(MAX_ROUNDS):
        layer = examination.layers[0]
        answers = list(_compatible(_answers(examination, layer)))
        if not answers:
            break
        changes += [_change(source, finding, answer) for finding, answer in answers]
        edits = [edit for _, answer in answers for edit in answer.edits]
        examination = _examine(file_layer(Kind.FILE, name, _apply(layer.text, edits)))
    changes.sort(key=lambda change: (change.weight, change.line))
    examination = _examine(file_layer(Kind.FILE, name, heading + examination.layers[0].text))
    left = tuple(found for found in examination.diagnostics if found.severity is not Severity.NOTE)
    return Migration(examination.layers[0].text, tuple(changes), left)


def _change(source: Layer, finding: Finding, answer: _Answer) -> Change:
    return Change(line_of(source, finding.path), answer.what, answer.reason, answer.weight)


def _examine(layer: Layer) -> Examination:
    return examine_files(Files(Path(layer.name), [layer]), check_host=False)


def _answers(examination: Examination, layer: Layer) -> Iterator[tuple[Finding, _Answer]]:
    """Yield what is to be done about the findings that something can be done about."""
    tree = examination.merged.tree
    for finding in examination.judgement.findings:
        answer = _answer(finding, layer, tree)
        if answer is not None and answer.edits:
            yield finding, answer


def _compatible(answers: Iterator[tuple[Finding, _Answer]]) -> Iterator[tuple[Finding, _Answer]]:
    """Leave out, until the next round, what touches the same text or sets the same key as another one."""
    taken: list[Edit] = []
    replaced: set[KeyPath] = set()
    for finding, answer in answers:
        free = all(
            edit.end <= other.start or other.end <= edit.start for edit in answer.edits for other in taken
        )
        if free and answer.replaces not in replaced:
            taken += answer.edits
            replaced |= {answer.replaces} if answer.replaces else set()
            yield finding, answer


def _answer(finding: Finding, layer: Layer, tree: Mapping[str, Any]) -> _Answer | None:
    if finding.code in _DEAD_ENTRIES and finding.fix is None:
        return _without_entry(finding, layer, tree)
    if finding.fix is not None:
        return _corrected(finding, finding.fix, layer, tree)
    if finding.loss is Loss.UNDECIDED:
        return None
    if finding.code in _DROPPED or (finding.code is Code.UNUSED and finding.loss is Loss.NOTHING):
        return _dropped(finding, layer, _reason(finding), _weight(finding))
    if finding.code is Code.UNCONFINED and _value(tree, finding.path) == "":
        reason = 'QEMU would run unconfined; without the key all groups are denied, and "off" denies none'
        return _dropped(finding, layer, reason)
    if finding.code is Code.RELATION and finding.path[-1] == "dial_timeout_ms":
        return _dropped(finding, layer, f"{finding.message}, and no second attempt would be made")
    if finding.code is Code.CHOICE:
        return _only_choice(finding, layer)
    if finding.code is Code.MISSING_TABLE:
        return _selected(finding, layer, tree)
    return None


def _reason(finding: Finding) -> str:
    """Return why a statement goes: the message, and the hint where that is more than to remove it."""
    advice, _, why = finding.hint.partition(": ")
    hint = why if advice == "remove it" else "" if finding.hint.startswith("remove ") else finding.hint
    return f"{finding.message} ({hint})" if hint else finding.message


def _weight(finding: Finding) -> Weight:
    """Return how much it matters that a statement goes."""
    if finding.code in (Code.INERT, Code.ALIAS_REPEATED) or finding.loss is Loss.NOTHING:
        return Weight.HARMLESS
    return Weight.PROTECTION if finding.loss is Loss.PROTECTION else Weight.LOST


def _corrected(finding: Finding, fix: Fix, layer: Layer, tree: Mapping[str, Any]) -> _Answer | None:
    """Do what the finding's fix says; what is there already in its right form wins over the old one."""
    path, name = finding.path, key_name(finding.path)
    if fix.remove:
        return _dropped(finding, layer, finding.message, _weight(finding))
    home = fix.table or path[:-1]
    target = (*home, fix.rename or path[-1])
    if target != path and _value(tree, target) is not None:
        return _dropped(finding, layer, f"{finding.message}; {key_name(target)} is there already")
    if fix.table:
        edits, what = [*_move(layer, path, target)], f"moved {name} to [{key_name(home)}]"
    else:
        edits = [*place_finding(layer, finding).edits]
        if fix.rename and fix.value is not None:
            edits += _new_comment(layer, path, target)
        new = f" = {value_text(fix.value)}" if fix.value is not None else ""
        if fix.rename:
            what = f"renamed {name} to {fix.rename}{new}"
        else:
            what = f"changed {name}{_from(_value(tree, path))} to {value_text(fix.value)}"
    return _Answer(tuple(edits), what, finding.message, target if target != path else ())


def _new_comment(layer: Layer, path: KeyPath, target: KeyPath) -> Iterator[Edit]:
    """Explain a key whose unit or meaning changes: the comment above it is still the old one's."""
    span, model = layer.index.find(path), TABLES.get(own_path(target[:-1]))
    field = model.model_fields.get(str(target[-1])) if model else None
    if span is not None and span.statement is not None and field is not None:
        above = layer.text.rfind("\n", 0, span.statement[0]) + 1
        yield Edit(above, above, template.explained(field))


def _from(value: object) -> str:
    return "" if value is None else f" from {quoted(value, 40)}"


def _dropped(finding: Finding, layer: Layer, reason: str, weight: Weight = Weight.CHANGED) -> _Answer:
    """Remove a key, or a table with all that is in it."""
    depth = len(finding.path)
    statements = {
        span.statement for path, span in layer.index if path[:depth] == finding.path and span.statement
    }
    edits = [Edit(*_with_comment(layer.text, start, end), "") for start, end in sorted(statements)]
    return _Answer(tuple(edits), f"dropped {_shown(finding.path, layer)}", reason, weight=weight)


def _shown(path: KeyPath, layer: Layer) -> str:
    """Return a key with its value as the source has it, or a table's name."""
    span = layer.index.find(path)
    if span is None or span.statement is None or span.value == span.key:
        return f"[{key_name(path)}]"
    value = " ".join(layer.text[span.value : span.value_end].split())
    return f"{key_name(path)} = {value if len(value) <= 60 else value[:57] + '...'}"


def _without_entry(finding: Finding, layer: Layer, tree: Mapping[str, Any]) -> _Answer | None:
    """Take one entry out of an array; of several, the others follow in the next rounds."""
    *above, number = finding.path
    array, span = _value(tree, tuple(above)), layer.index.find(tuple(above))
    if not isinstance(array, list) or not isinstance(number, int) or span is None:
        return None
    left = [item for place, item in enumerate(array) if place != number]
    what = f"dropped {quoted(array[number])} from {key_name(tuple(above))}"
    edit = Edit(span.value, span.value_end, value_text(left))
    return _Answer((edit,), what, _reason(finding), weight=_weight(finding))


def _only_choice(finding: Finding, layer: Layer) -> _Answer | None:
    """Where a key has one allowed value, take it."""
    model = TABLES.get(own_path(finding.path[:-1]))
    field = model.model_fields.get(str(finding.path[-1])) if model else None
    choices = facts.choices(field) if field else ()
    span = layer.index.find(finding.path)
    if len(choices) != 1 or span is None:
        return None
    edit = Edit(span.value, span.value_end, value_text(choices[0]))
    old = layer.text[span.value : span.value_end]
    weight = Weight.LOST if finding.loss is Loss.SOMETHING else Weight.CHANGED
    what = f"changed {key_name(finding.path)} from {old} to {quoted(choices[0])}"
    return _Answer((edit,), what, finding.message, weight=weight)


def _selected(finding: Finding, layer: Layer, tree: Mapping[str, Any]) -> _Answer | None:
    """Name the hypervisor whose table is the only one: elsewhere, its being there selects it."""
    tables = [name for name in tree.get("hypervisor", {}) if own_path(("hypervisor", name)) in TABLES]
    if len(tables) != 1 or _value(tree, ("runtime", "hypervisor_name")) is not None:
        return None
    statement = f"hypervisor_name = {quoted(tables[0])}\n"
    header = layer.index.find(("runtime",))
    if header is None or header.statement is None:
        place, statement = len(layer.text), f"\n[runtime]\n{statement}"
    else:
        place = _line_end(layer.text, header.statement[1]) + 1
    edit = Edit(place, place, statement)
    reason = "the only hypervisor's table selects it elsewhere; here its name does"
    return _Answer(
        (edit,),
        f"added runtime.hypervisor_name = {quoted(tables[0])}",
        reason,
        ("runtime", "hypervisor_name"),
    )


def _move(layer: Layer, path: KeyPath, target: KeyPath) -> Iterator[Edit]:
    """Take a statement with its comment into another table, which is made where there is none."""
    span, text = layer.index.find(path), layer.text
    if span is None or span.statement is None:
        return
    start, end = _with_comment(text, *span.statement)
    comment = text[start : text.rfind("\n", 0, span.statement[0]) + 1]
    pair = f"{comment}{key_text(str(target[-1]))} = {text[span.value : _line_end(text, span.value_end)]}\n"
    yield Edit(start, end, "")
    header = layer.index.find(target[:-1])
    if header is None or header.statement is None:
        yield Edit(len(text), len(text), f"\n[{key_name(target[:-1])}]\n{pair}")
        return
    place = min(_line_end(text, header.statement[1]) + 1, len(text))
    yield Edit(place, place, f"{pair}\n")


_COMMENT = re.compile(r"(?:^[ \t]*#[^\n]*\n)+\Z", re.MULTILINE)


def _with_comment(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen a statement to its lines and the comment right above; a file's first comment is its own."""
    begin, stop = text.rfind("\n", 0, start) + 1, min(_line_end(text, end) + 1, len(text))
    comment = _COMMENT.search(text, 0, begin)
    if comment and comment.start() > 0:
        begin = comment.start()
    return begin, stop


def _line_end(text: str, offset: int) -> int:
    end = text.find("\n", offset)
    return end if end != -1 else len(text)


def _value(tree: Mapping[str, Any], path: KeyPath) -> Any:
    node: Any = tree
    for part in path:
        if isinstance(node, list) and isinstance(part, int):
            node = node[part]
        elif isinstance(node, Mapping):
            node = node.get(str(part))
        else:
            return None
    return node


def _apply(text: str, edits: list[Edit]) -> str:
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end), reverse=True):
        before, after = text[: edit.start], text[edit.end :]
        if not edit.text and before.endswith("\n\n"):
            after = after.removeprefix("\n")  # of two empty lines around what goes, one is left
        text = before + edit.text + after
    return text
