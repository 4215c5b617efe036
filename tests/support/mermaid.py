"""Mermaid diagrams in Markdown: the part of the syntax that this project's pictures use."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SUBGRAPH = re.compile(r'subgraph (?P<id>\w+)\["(?P<label>[^"]*)"\]')
_NODE = re.compile(r'(?P<id>\w+)\["(?P<label>[^"]*)"\]')
_ARROW = re.compile(
    r"(?P<sources>\w+(?: & \w+)*) "
    r'(?P<kind>-->|-\.->|<-->)(?:\|"(?P<label>[^"]*)"\|)? '
    r"(?P<targets>\w+(?: & \w+)*)"
)
_PARTICIPANT = re.compile(r"participant (?P<id>\w+) as (?P<name>\w+)")
_MESSAGE = re.compile(r"(?P<source>\w+)(?P<kind>->>|-->>)(?P<target>\w+): (?P<text>.+)")
_NOTE = re.compile(r"note over [\w,]+: (?P<text>.+)")


@dataclass(frozen=True, slots=True)
class Node:
    """A box. lines: its label. group: the id of the subgraph that it stands in, or ""."""

    lines: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """An arrow from one id to another. kind: "-->", "-.->" or "<-->"."""

    source: str
    target: str
    kind: str
    label: str = ""


@dataclass(slots=True)
class Flowchart:
    """Boxes by id, the labels of subgraphs by id, and arrows."""

    nodes: dict[str, Node] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    arrows: list[Arrow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Message:
    """One line of a sequence: who asks whom for what. A note has no source and target."""

    source: str
    target: str
    text: str


def blocks(page: Path) -> list[str]:
    """Return the text of every diagram on a page."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def parse_flowchart(text: str) -> Flowchart:
    """Parse a flowchart.

    Raises:
        ValueError: a line is none of those that are known here.
    """
    chart, group = Flowchart(), ""
    for line in _lines(text, "flowchart"):
        if found := _SUBGRAPH.fullmatch(line):
            group = found["id"]
            chart.groups[group] = found["label"]
        elif line == "end":
            group = ""
        elif found := _NODE.fullmatch(line):
            chart.nodes[found["id"]] = Node(tuple(found["label"].split("<br/>")), group)
        elif found := _ARROW.fullmatch(line):
            chart.arrows += [
                Arrow(source, target, found["kind"], found["label"] or "")
                for source in found["sources"].split(" & ")
                for target in found["targets"].split(" & ")
            ]
        else:
            raise ValueError(f"not understood: {line}")
    drawn = chart.nodes.keys() | chart.groups.keys()
    if unknown := {end for arrow in chart.arrows for end in (arrow.source, arrow.target)} - drawn:
        raise ValueError(f"arrows at what is not drawn: {', '.join(sorted(unknown))}")
    return chart


def parse_sequence(text: str) -> list[Message]:
    """Parse a sequence diagram, with the participants' names. Raises as `parse_flowchart`."""
    names: dict[str, str] = {}
    messages = []
    for line in _lines(text, "sequenceDiagram"):
        if found := _PARTICIPANT.fullmatch(line):
            names[found["id"]] = found["name"]
        elif found := _NOTE.fullmatch(line):
            messages.append(Message("", "", found["text"]))
        elif found := _MESSAGE.fullmatch(line):
            messages.append(Message(names[found["source"]], names[found["target"]], found["text"]))
        else:
            raise ValueError(f"not understood: {line}")
    return messages


def _lines(text: str, kind: str) -> list[str]:
    first, *rest = [line.strip() for line in text.splitlines() if line.strip()]
    if first.split()[0] != kind:
        raise ValueError(f"this is no {kind}: {first}")
    return rest
