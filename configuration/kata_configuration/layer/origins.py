"""Where values are from: a line of a file or drop-in, an annotation, or the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kata_configuration.diagnostics import KeyPath
from kata_configuration.layer.layers import Kind, Layer, line_of
from kata_configuration.layer.merging import Merged, spellings


class Origin(NamedTuple):
    """Where one value is from. name: the file's path or the annotation's name; line: from 1, or 0."""

    kind: Kind
    name: str = ""
    line: int = 0

    def __str__(self) -> str:
        """Write it as FILE:LINE, annotation NAME, or default; a drop-in has the path of its directory."""
        if self.kind is Kind.DEFAULT:
            return "default"
        if self.kind is Kind.ANNOTATION:
            return f"annotation {self.name}"
        return f"{self.name}:{self.line}" if self.line else self.name


class Origins:
    """The origins of a configuration's values. The first question parses the files again, for their lines."""

    def __init__(self, layers: Sequence[Layer], merged: Merged) -> None:
        self._layers = layers
        self._merged = merged

    def of(self, path: KeyPath) -> Origin:
        """Return where the value of a key is from. path: of the key, as the models name it."""
        written = self._spelling(path)
        if written is None:
            return Origin(Kind.DEFAULT)
        layer = self._layers[self._merged.owner(written)]
        if layer.kind is Kind.ANNOTATION:
            return Origin(layer.kind, layer.name)

        return Origin(layer.kind, layer.name, line_of(layer, written))

    def _spelling(self, path: KeyPath) -> KeyPath | None:
        """Return the path as the files spell it, or None when no file sets it."""
        node: object = self._merged.tree
        written: KeyPath = ()
        for part in path:
            if not isinstance(node, dict):
                return None
            key = next((key for key in spellings(written, str(part)) if key in node), None)
            if key is None:
                return None
            written, node = (*written, key), node[key]
        return written
