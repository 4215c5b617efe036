"""What a program was seen to call: the record that `kata-ctl seccomp trace` writes, and others read.

A record is a JSON object {"format": 1, "arch", "kernel", "command": [argv], "status", "calls": [...]}, each
call {"program", "thread", "call", "number", "arguments": {"INDEX": value}, "count"}. Only arguments that
decide what the call does are in it, none that point into memory or name a descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import text_file

FORMAT = 1

Arguments = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """A call with one combination of arguments, as one thread of one program made it.

    call: its name, "ARCH:NUMBER" for one that has none here. arguments: pairs of index and value, those that
    are kept; empty as well when there were too many different ones. count: how often.
    """

    program: str
    thread: str
    call: str
    number: int
    arguments: Arguments
    count: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that was seen of one command. status: its exit status, 128 + number for a signal."""

    arch: str
    kernel: str
    command: tuple[str, ...]
    status: int
    observations: tuple[Observation, ...]

    @property
    def calls(self) -> dict[str, list[Observation]]:
        """The observations by call, in the order of the calls' numbers."""
        found: dict[str, list[Observation]] = {}
        for observation in sorted(self.observations, key=lambda seen: (seen.number, seen.arguments)):
            found.setdefault(observation.call, []).append(observation)
        return found

    @property
    def foreign(self) -> list[str]:
        """Calls that no policy of this architecture can name."""
        return [call for call in self.calls if ":" in call]

    def merged(self, other: Trace) -> Trace:
        """What was seen in either, of one architecture; raises PolicyError otherwise."""
        if other.arch != self.arch:
            raise PolicyError(f"a trace of {self.arch} and one of {other.arch} make no common profile")
        observations = (*self.observations, *other.observations)
        return Trace(self.arch, self.kernel, self.command, max(self.status, other.status), observations)

    def of(self, program: str = "", thread: str = "") -> Trace:
        """What programs and threads whose names begin so have called."""
        chosen = tuple(
            seen
            for seen in self.observations
            if seen.program.startswith(program) and seen.thread.startswith(thread)
        )
        return Trace(self.arch, self.kernel, self.command, self.status, chosen)


def save(trace: Trace, path: Path) -> None:
    """Write a record. Raises OSError."""
    calls = [
        {
            "program": seen.program,
            "thread": seen.thread,
            "call": seen.call,
            "number": seen.number,
            "arguments": {str(index): value for index, value in seen.arguments},
            "count": seen.count,
        }
        for seen in trace.observations
    ]
    head = {"format": FORMAT, "arch": trace.arch, "kernel": trace.kernel, "command": trace.command}
    path.write_text(json.dumps({**head, "status": trace.status, "calls": calls}, indent=1) + "\n")


def load(path: Path) -> Trace:
    """Read a record.

    Raises:
        PolicyError: it cannot be read, or is no such record; the message names the file and the place.
    """
    try:
        document = json.loads(text_file.read(path, "trace"))
    except ValueError as error:
        raise PolicyError(f"{path} is no trace: it is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PolicyError(f"{path} is no trace of format {FORMAT}; make one with kata-ctl seccomp trace")
    reader = _Reader(str(path))
    calls = reader.field(document, "calls", list)
    command = reader.field(document, "command", list)
    return Trace(
        arch=reader.field(document, "arch", str),
        kernel=reader.field(document, "kernel", str),
        command=tuple(str(argument) for argument in command),
        status=reader.field(document, "status", int),
        observations=tuple(reader.observations(calls)),
    )


class _Reader:
    """Reads checked fields of a record; source is its name in messages."""

    def __init__(self, source: str) -> None:
        self._source = source

    def field(self, table: Mapping[str, Any], name: str, kind: type) -> Any:
        """A field of this type; a number is never negative."""
        value: Any = table.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise PolicyError(f"{self._source} is no trace: {name} must be a {kind.__name__}, not {value!r}")
        return value

    def observations(self, calls: Iterable[Any]) -> Iterable[Observation]:
        """The entries of "calls"."""
        for call in calls:
            if not isinstance(call, dict):
                raise PolicyError(f"{self._source} is no trace: a call must be a table, not {call!r}")
            yield Observation(
                program=self.field(call, "program", str),
                thread=self.field(call, "thread", str),
                call=self.field(call, "call", str),
                number=self.field(call, "number", int),
                arguments=self._arguments(self.field(call, "arguments", dict)),
                count=self.field(call, "count", int),
            )

    def _arguments(self, table: Mapping[str, Any]) -> Arguments:
        for index in table:
            if index not in ("0", "1", "2", "3", "4", "5"):
                raise PolicyError(f"{self._source} is no trace: calls have no argument {index!r}")
        return tuple((int(index), self.field(table, index, int)) for index in sorted(table))
