"""The values in force, each with its origin, and as a file that loads again to the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kata_configuration.configuration import Configuration
from kata_configuration.diagnostics import KeyPath, key_name
from kata_configuration.layer.layers import Kind
from kata_configuration.layer.origins import Origin
from kata_configuration.models import Table
from kata_configuration.parse.toml_text import key_text, value_text
from kata_configuration.tell.reports import printable

COLUMN = 60


@dataclass(frozen=True, slots=True)
class Value:
    """One value in force. path: of its key. value: None where the key has no value and no default."""

    path: KeyPath
    value: Any
    origin: Origin


def values(configuration: Configuration, *, defaults: bool) -> list[Value]:
    """Return the values of the tables in force, table by table; with `defaults`, also what nobody has set."""
    tables: tuple[tuple[KeyPath, Table], ...] = (
        (("hypervisor", configuration.hypervisor_name), configuration.hypervisor),
        (("agent", configuration.runtime.agent_name), configuration.agent),
        (("runtime",), configuration.runtime),
    )
    found = [value for path, table in tables for value in _values(configuration, path, table)]
    return [value for value in found if defaults or value.origin.kind is not Kind.DEFAULT]


def toml(configuration: Configuration, shown: list[Value], *, origins: bool) -> str:
    """Write values as a configuration file; with `origins`, a comment says where each is from."""
    lines = [f"# {printable(str(configuration))}"]
    for table, group in groupby(shown, lambda value: value.path[:-1]):
        lines += ["", f"[{'.'.join(key_text(str(part)) for part in table)}]"]
        lines += [_line(value, origins) for value in group]
    return "\n".join(lines) + "\n"


def json_report(configuration: Configuration, shown: list[Value]) -> str:
    """Write values as one JSON object, with the files that they are from."""
    document = {
        "configuration": {
            "path": str(configuration.path),
            "source": configuration.source,
            "drop_ins": [str(path) for path in configuration.drop_ins],
            "annotations": list(configuration.annotations),
            "sha256": configuration.sha256,
        },
        "values": [
            {"key": key_name(item.path), "value": item.value, "origin": _plain(item.origin)} for item in shown
        ],
    }
    return json.dumps(document, indent=2)


def _line(item: Value, origins: bool) -> str:
    name = key_text(str(item.path[-1]))
    line = f"{name} = {value_text(item.value)}" if item.value is not None else f"# {name} has no value"
    return f"{line:<{COLUMN}} # {printable(str(item.origin))}" if origins and item.value is not None else line


def _values(configuration: Configuration, path: KeyPath, table: Table) -> Iterator[Value]:
    """Yield a table's values; those of the tables in it come last, as TOML wants it."""
    assert configuration.origins is not None
    below = []
    for name, value in table:
        here = (*path, name)
        if isinstance(value, Table):
            below.append((here, value))
        else:
            yield Value(here, _plain_value(value), configuration.origins.of(here))
    for here, value in below:
        yield from _values(configuration, here, value)


def _plain_value(value: Any) -> Any:
    """Return a value as TOML and JSON know it."""
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, Table):
        return {name: _plain_value(item) for name, item in value if item is not None}
    if isinstance(value, Mapping):
        return {name: _plain_value(item) for name, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _plain(origin: Origin) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": origin.kind.value}
    if origin.name:
        plain["name" if origin.kind is Kind.ANNOTATION else "path"] = origin.name
    if origin.line:
        plain["line"] = origin.line
    return plain
