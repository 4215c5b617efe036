"""Where each key and value of a TOML text stands, found with tree-sitter.

Imported only when there is something to place: a clean file is loaded without it.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import tomli
import tree_sitter
import tree_sitter_toml

from kata_configuration.diagnostics import Finding, KeyPath, key_name

_KEYS = frozenset({"bare_key", "quoted_key", "dotted_key"})


@dataclass(frozen=True, slots=True)
class Span:
    """Character offsets, from and to, of a key (its last part), of its value, and of the whole statement.

    A table's value is its name, and its statement is its header. statement: None for what is only a part of
    one, as are the elements of an array, the keys of an inline table and the tables above a dotted key.
    """

    key: int
    key_end: int
    value: int
    value_end: int
    statement: tuple[int, int] | None
    # Whether characters of the value stand one by one in the text: a one-line string without escapes.
    plain_string: bool


class SpanIndex:
    """Every key and array element of a text, by path, in order of appearance."""

    def __init__(self, text: str) -> None:
        self._encoded = text.encode()
        self._ascii = len(self._encoded) == len(text)
        # Byte and character offset of each line.
        lines = text.splitlines(keepends=True) if not self._ascii else []
        self._line_bytes = [0, *itertools.accumulate(len(line.encode()) for line in lines)]
        self._line_characters = [0, *itertools.accumulate(len(line) for line in lines)]
        self._entries: list[tuple[KeyPath, Span, bool]] = []
        self._arrays: dict[KeyPath, int] = {}
        root = tree_sitter.Parser(_language()).parse(self._encoded).root_node
        self._read_document(root)
        self._first: dict[KeyPath, Span] = {}
        for path, span, _ in self._entries:
            self._first.setdefault(path, span)

    def __iter__(self) -> Iterator[tuple[KeyPath, Span]]:
        """Yield every path and its span, in order of appearance."""
        return ((path, span) for path, span, _ in self._entries)

    def find(self, path: KeyPath) -> Span | None:
        """Return where a key or array element stands, or None when the text does not have it."""
        return self._first.get(path)

    def extent(self, finding: Finding) -> tuple[int, int]:
        """Return the character offsets, from and to, that a finding points at.

        What is missing is placed at its table.
        """
        span = self.find(finding.path)
        if span is None:
            above = (self.find(finding.path[:depth]) for depth in range(len(finding.path) - 1, 0, -1))
            span = next((span for span in above if span), None)
            return (span.key, span.key_end) if span else (0, 0)
        if finding.on_key:
            return span.key, span.key_end
        if finding.offset and span.plain_string:
            return span.value + finding.offset + 1, span.value_end - 1
        return span.value, span.value_end

    def repeated(self, start: int) -> tuple[int, int, str] | None:
        """Find the first key or table at or after a character offset that was defined before.

        Returns the character offsets of the first and of the second definition, and the dotted key.
        """
        defined: dict[KeyPath, int] = {}
        for path, span, defining in self._entries:
            if defining:
                first = defined.setdefault(path, span.key)
                if first < span.key and span.key >= start:
                    return first, span.key, key_name(path)
        return None

    def _read_document(self, root: tree_sitter.Node) -> None:
        for node in root.children:
            if node.type == "pair":
                self._read_pair(node, (), whole=True)
            elif node.type in ("table", "table_array_element"):
                self._read_table(node)

    def _read_table(self, node: tree_sitter.Node) -> None:
        name = next((child for child in node.children if child.type in _KEYS), None)
        if name is None:
            return
        path: KeyPath = ()
        parts = list(self._key_parts(name))
        for number, (part, at) in enumerate(parts, 1):
            path = (*path, part)
            last = number == len(parts)
            if last and node.type == "table_array_element":
                self._add(path, at, name, defining=False, statement=self._header(node))
                self._arrays[path] = self._arrays.get(path, -1) + 1
                path = (*path, self._arrays[path])
            elif path in self._arrays:
                path = (*path, self._arrays[path])
            self._add(path, at, name, defining=last, statement=self._header(node) if last else None)
        for child in node.children:
            if child.type == "pair":
                self._read_pair(child, path, whole=True)

    def _header(self, node: tree_sitter.Node) -> tuple[int, int]:
        ends = (child.end_byte for child in node.children if child.type in ("]", "]]"))
        return self._offset(node.start_byte), self._offset(next(ends, node.end_byte))

    def _read_pair(self, node: tree_sitter.Node, table: KeyPath, *, whole: bool = False) -> None:
        named = [child for child in node.children if child.is_named and not child.is_error]
        if len(named) < 2 or named[0].type not in _KEYS:
            return
        key, value, path = named[0], named[1], table
        parts = list(self._key_parts(key))
        for number, (part, at) in enumerate(parts, 1):
            path = (*path, part)
            last = number == len(parts)
            statement = self._extent(node) if whole and last else None
            self._add(path, at, value, defining=last, statement=statement)
        self._read_value(value, path)

    def _read_value(self, node: tree_sitter.Node, path: KeyPath) -> None:
        if node.type == "inline_table":
            for child in node.children:
                if child.type == "pair":
                    self._read_pair(child, path)
        elif node.type == "array":
            elements = (child for child in node.children if child.is_named and child.type != "comment")
            for number, child in enumerate(elements):
                self._add((*path, number), self._extent(child), child, defining=False)
                self._read_value(child, (*path, number))

    def _key_parts(self, node: tree_sitter.Node) -> Iterator[tuple[str, tuple[int, int]]]:
        if node.type == "dotted_key":
            for child in node.children:
                if child.type in _KEYS:
                    yield from self._key_parts(child)
        else:
            text = self._raw(node)
            part = text if node.type == "bare_key" else next(iter(tomli.loads(f"{text}=0")))
            yield part, self._extent(node)

    def _add(
        self,
        path: KeyPath,
        key: tuple[int, int],
        value: tree_sitter.Node,
        *,
        defining: bool,
        statement: tuple[int, int] | None = None,
    ) -> None:
        raw = self._raw(value)
        plain = raw[:1] in ('"', "'") and raw[:3] not in ('"""', "'''") and (raw[0] == "'" or "\\" not in raw)
        self._entries.append((path, Span(*key, *self._extent(value), statement, plain), defining))

    def _raw(self, node: tree_sitter.Node) -> str:
        return self._encoded[node.start_byte : node.end_byte].decode()

    def _extent(self, node: tree_sitter.Node) -> tuple[int, int]:
        return self._offset(node.start_byte), self._offset(node.end_byte)

    def _offset(self, byte: int) -> int:
        if self._ascii:
            return byte
        line = bisect.bisect_right(self._line_bytes, byte) - 1
        return self._line_characters[line] + len(self._encoded[self._line_bytes[line] : byte].decode())


@functools.cache
def _language() -> tree_sitter.Language:
    return tree_sitter.Language(tree_sitter_toml.language())
