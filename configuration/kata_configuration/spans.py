"""Where each key and value of a TOML text stands, found with tree-sitter.

Imported only when there is something to place: a clean file is loaded without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import tomli
import tree_sitter
import tree_sitter_toml

from kata_configuration.diagnostics import Finding, KeyPath, key_name

_KEYS = frozenset({"bare_key", "quoted_key", "dotted_key"})


@dataclass(frozen=True, slots=True)
class Span:
    """Character offsets of a key (its last part) and of its value; a table's value is its name."""

    key: int
    value: int
    # Whether characters of the value stand one by one in the text: a one-line string without escapes.
    plain_string: bool


class SpanIndex:
    """Every key and array element of a text, by path, in order of appearance."""

    def __init__(self, text: str) -> None:
        self._encoded = text.encode()
        self._ascii = len(self._encoded) == len(text)
        self._entries: list[tuple[KeyPath, Span, bool]] = []
        self._arrays: dict[KeyPath, int] = {}
        root = (
            tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
            .parse(self._encoded)
            .root_node
        )
        self._read_document(root)
        self._first: dict[KeyPath, Span] = {}
        for path, span, _ in self._entries:
            self._first.setdefault(path, span)

    def find(self, path: KeyPath) -> Span | None:
        """Return where a key or array element stands, or None when the text does not have it."""
        return self._first.get(path)

    def offset_of(self, finding: Finding) -> int:
        """Return the character offset that a finding points at; what is missing is placed at its table."""
        span = self.find(finding.path)
        if span is None:
            above = (self.find(finding.path[:depth]) for depth in range(len(finding.path) - 1, 0, -1))
            return next((span.key for span in above if span), 0)
        if finding.on_key:
            return span.key
        return span.value + (finding.offset + 1 if finding.offset and span.plain_string else 0)

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
                self._read_pair(node, ())
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
                self._add(path, at, name, defining=False)
                self._arrays[path] = self._arrays.get(path, -1) + 1
                path = (*path, self._arrays[path])
            elif path in self._arrays:
                path = (*path, self._arrays[path])
            self._add(path, at, name, defining=last)
        for child in node.children:
            if child.type == "pair":
                self._read_pair(child, path)

    def _read_pair(self, node: tree_sitter.Node, table: KeyPath) -> None:
        named = [child for child in node.children if child.is_named and not child.is_error]
        if len(named) < 2 or named[0].type not in _KEYS:
            return
        key, value, path = named[0], named[1], table
        parts = list(self._key_parts(key))
        for number, (part, at) in enumerate(parts, 1):
            path = (*path, part)
            self._add(path, at, value, defining=number == len(parts))
        self._read_value(value, path)

    def _read_value(self, node: tree_sitter.Node, path: KeyPath) -> None:
        if node.type == "inline_table":
            for child in node.children:
                if child.type == "pair":
                    self._read_pair(child, path)
        elif node.type == "array":
            elements = (child for child in node.children if child.is_named and child.type != "comment")
            for number, child in enumerate(elements):
                self._add((*path, number), self._offset(child), child, defining=False)
                self._read_value(child, (*path, number))

    def _key_parts(self, node: tree_sitter.Node) -> Iterator[tuple[str, int]]:
        if node.type == "dotted_key":
            for child in node.children:
                if child.type in _KEYS:
                    yield from self._key_parts(child)
        else:
            text = self._raw(node)
            part = text if node.type == "bare_key" else next(iter(tomli.loads(f"{text}=0")))
            yield part, self._offset(node)

    def _add(self, path: KeyPath, key: int, value: tree_sitter.Node, *, defining: bool) -> None:
        raw = self._raw(value)
        plain = raw[:1] in ('"', "'") and raw[:3] not in ('"""', "'''") and (raw[0] == "'" or "\\" not in raw)
        self._entries.append((path, Span(key, self._offset(value), plain), defining))

    def _raw(self, node: tree_sitter.Node) -> str:
        return self._encoded[node.start_byte : node.end_byte].decode()

    def _offset(self, node: tree_sitter.Node) -> int:
        if self._ascii:
            return node.start_byte
        return len(self._encoded[: node.start_byte].decode())
