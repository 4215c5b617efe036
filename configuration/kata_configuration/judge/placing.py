"""From findings to diagnostics: each gets the file, line and column that it is about, and what fixes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from kata_configuration.diagnostics import (
    Code,
    Diagnostic,
    Edit,
    Finding,
    Fix,
    KeyPath,
    Severity,
    key_name,
    quoted,
)
from kata_configuration.layer.layers import Kind, Layer
from kata_configuration.parse.spans import Span
from kata_configuration.parse.syntax import SyntaxFault
from kata_configuration.parse.toml_text import key_text, value_text

_OPTION = re.compile(r"\s*[^,\s\"']*")
_WORD = re.compile(r"[^\s,#\[\]{}]*")


def place_fault(layer: Layer, fault: SyntaxFault) -> Diagnostic:
    """Give a fault of the text its line and column."""
    word = _WORD.match(layer.text, fault.offset)
    end = word.end() if word else fault.offset
    return _at(layer, fault.code, fault.message, fault.hint, fault.key, (fault.offset, end))


def place_finding(layer: Layer, finding: Finding, severity: Severity | None = None) -> Diagnostic:
    """Give a finding the place in its layer, with its code's severity or the one given."""
    key = key_name(finding.path)
    if layer.kind is Kind.ANNOTATION:
        message = finding.message
        if finding.code is Code.TYPE:  # all annotations are text; this one is no number or boolean
            message = f"{quoted(layer.text)} {message}"
        return Diagnostic.of(finding.code, layer.place, message, finding.hint, key=key, severity=severity)
    start, end = layer.index.extent(finding)
    if finding.offset and (option := _OPTION.match(layer.text, start, end)):
        end = option.end()
    edits = tuple(_edits(layer, finding.path, finding.fix)) if finding.fix else ()
    placed = _at(layer, finding.code, finding.message, finding.hint, key, (start, end), severity)
    return replace(placed, edits=edits)


def _at(
    layer: Layer,
    code: Code,
    message: str,
    hint: str,
    key: str,
    extent: tuple[int, int],
    severity: Severity | None = None,
) -> Diagnostic:
    text, (start, end) = layer.text, extent
    line, begin = layer.line_of(start)
    excerpt = text[begin : _line_end(text, start)]
    column = start - begin + 1
    placed = Diagnostic.of(
        code,
        layer.place,
        message,
        hint,
        key=key,
        line=line,
        column=column,
        severity=severity,
    )
    length = max(min(end - start, len(excerpt) - column + 1), 0)
    return replace(placed, excerpt=excerpt, length=length)


def _edits(layer: Layer, path: KeyPath, fix: Fix) -> Iterator[Edit]:
    """Yield the edits that a fix comes to; none where the key stands within another statement."""
    span = layer.index.find(path)
    if span is None:
        return
    if fix.remove or fix.table:
        if span.statement is None:
            return
        if fix.table:
            yield _insertion(layer, fix, span)
        yield Edit(*_whole_lines(layer.text, *span.statement), "")
        return
    if fix.rename:
        starts = {other.key: other.key_end for name, other in layer.index if name == path}
        yield from (Edit(start, end, key_text(fix.rename)) for start, end in starts.items())
    if fix.value is not None:
        yield Edit(span.value, span.value_end, value_text(fix.value))


def _insertion(layer: Layer, fix: Fix, span: Span) -> Edit:
    """Put the statement at the end of the table that it belongs in, which is made where there is none."""
    text = layer.text
    name = key_text(fix.rename) if fix.rename else text[span.key : span.key_end]
    value = value_text(fix.value) if fix.value is not None else text[span.value : span.value_end]
    ends = [
        other.statement[1]
        for path, other in layer.index
        if other.statement and (path == fix.table or (path[:-1] == fix.table and _is_pair(other)))
    ]
    if not ends:
        gap = "\n" if text.endswith("\n") or not text else "\n\n"
        return Edit(len(text), len(text), f"{gap}[{key_name(fix.table)}]\n{name} = {value}\n")
    end = _line_end(text, max(ends))
    return Edit(end, end, f"\n{name} = {value}")


def _is_pair(span: Span) -> bool:
    return (
        span.statement is not None and span.statement[0] <= span.key and span.statement[1] == span.value_end
    )


def _whole_lines(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen a statement to its lines, with the comment behind it, when nothing else stands on them."""
    begin, stop = text.rfind("\n", 0, start) + 1, _line_end(text, end)
    rest = text[end:stop].lstrip(" \t")
    if text[begin:start].strip(" \t") or (rest and not rest.startswith("#")):
        return start, end
    return begin, min(stop + 1, len(text))


def _line_end(text: str, offset: int) -> int:
    end = text.find("\n", offset)
    return end if end != -1 else len(text)
