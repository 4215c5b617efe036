"""The layers of a configuration: the base file, its drop-ins, then annotations, each with its own tree."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata_configuration.diagnostics import Diagnostic, KeyPath
from kata_configuration.layer import reading
from kata_configuration.parse.syntax import SyntaxFault, parse
from kata_configuration.parse.trust import Place

if TYPE_CHECKING:
    from kata_configuration.parse.spans import SpanIndex


class Kind(Enum):
    """What a layer is, or for a value that none has, that it is a default."""

    FILE = "file"
    DROP_IN = "drop-in"
    ANNOTATION = "annotation"
    DEFAULT = "default"


@dataclass(frozen=True)
class Layer:
    """One layer. name: the file's path, or the annotation's name.

    text: of the file, with plain newlines, or the annotation's value. sound: the same, with statements that
    are no TOML blanked out.
    """

    kind: Kind
    name: str
    tree: dict[str, Any]
    text: str = ""
    sound: str = ""
    faults: tuple[SyntaxFault, ...] = ()

    @property
    def place(self) -> str:
        """What stands for the layer in a diagnostic, where a file's path would."""
        return annotation_place(self.name) if self.kind is Kind.ANNOTATION else self.name

    @cached_property
    def index(self) -> SpanIndex:
        """Where the keys and values stand. The first use parses the text a second time."""
        from kata_configuration.parse.spans import SpanIndex

        return SpanIndex(self.sound)

    def line_of(self, offset: int) -> tuple[int, int]:
        """Return the line, from 1, of a character offset of the text, and the offset where it begins."""
        number = bisect.bisect_right(self._line_starts, offset)
        return number, self._line_starts[number - 1]

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self.text))]


@dataclass(slots=True)
class Files:
    """The files of a configuration: their layers, the drop-ins that could not be read, and their hash.

    places: the files, and the directories that they are in. skipped: files whose names are almost those of
    drop-ins.
    """

    path: Path
    layers: list[Layer]
    places: list[Place] = field(default_factory=list)
    unreadable: list[Diagnostic] = field(default_factory=list)
    sha256: str = ""
    skipped: tuple[Path, ...] = ()

    @property
    def drop_ins(self) -> tuple[Path, ...]:
        """The drop-ins that were read, in the order in which they are merged."""
        return tuple(Path(layer.name) for layer in self.layers[1:])


def annotation_place(name: str) -> str:
    """Return what stands for an annotation in a diagnostic, where a file's path would."""
    return f"annotation {name}"


def read_files(path: Path) -> Files:
    """Read and parse a configuration file and its drop-ins. Raises ConfigurationError; see `reading.read`."""
    read = reading.read(path)
    kinds = (Kind.FILE, *(Kind.DROP_IN for _ in read.files[1:]))
    layers = [
        file_layer(kind, str(file.path), file.text) for kind, file in zip(kinds, read.files, strict=True)
    ]
    return Files(path, layers, list(read.places), list(read.unreadable), read.sha256, read.skipped)


def file_layer(kind: Kind, name: str, text: str) -> Layer:
    """Parse the text of a file, with plain newlines, into its layer."""
    parsed = parse(text)
    return Layer(kind, name, parsed.tree, text, parsed.text, parsed.faults)


def line_of(layer: Layer, path: KeyPath) -> int:
    """Return the line, from 1, where a key or element stands in a file, or 0 where it does not."""
    span = layer.index.find(path) if layer.text else None
    return layer.line_of(span.key)[0] if span else 0
