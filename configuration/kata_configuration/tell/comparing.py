"""What differs in effect between two configurations: values in force, wherever they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from kata_configuration.configuration import Configuration
from kata_configuration.diagnostics import KeyPath, key_name
from kata_configuration.models import TABLES
from kata_configuration.models.base import About, Annotation, Effect, inner_table
from kata_configuration.parse.toml_text import value_text
from kata_configuration.tell.effective import Value, values
from kata_configuration.tell.reports import printable


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose values differ. before, after: None where the hypervisor in force has no such key.

    security: whether the key concerns confinement, by its declaration.
    """

    key: str
    before: Value | None
    after: Value | None
    security: bool

    def __str__(self) -> str:
        """One line: the key, and both values with their origins."""
        mark = "security" if self.security else "        "
        return printable(f"{mark}  {self.key}: {_text(self.before)} -> {_text(self.after)}")


def differences(before: Configuration, after: Configuration) -> list[Difference]:
    """Compare every value in force, defaults too; what concerns confinement comes first.

    Two hypervisors' tables are compared key by key, because one takes the other's place.
    """
    old, new = _by_place(before), _by_place(after)
    found = [
        Difference(_name(one, other), one, other, _concerns_confinement(one or other))
        for one, other in ((old.get(place), new.get(place)) for place in {**old, **new})
        if one is None or other is None or one.value != other.value
    ]
    return sorted(found, key=lambda difference: not difference.security)


def json_report(found: Sequence[Difference]) -> str:
    """Write differences as a JSON array."""

    def side(value: Value | None) -> dict[str, object] | None:
        return None if value is None else {"value": value.value, "origin": str(value.origin)}

    document = [
        {"key": item.key, "security": item.security, "before": side(item.before), "after": side(item.after)}
        for item in found
    ]
    return json.dumps(document, indent=2)


def _by_place(configuration: Configuration) -> dict[KeyPath, Value]:
    """The values in force, without the hypervisor's name in their places."""
    return {
        ("hypervisor", *value.path[2:]) if value.path[0] == "hypervisor" else value.path: value
        for value in values(configuration, defaults=True)
    }


def _name(before: Value | None, after: Value | None) -> str:
    names = dict.fromkeys(key_name(value.path) for value in (before, after) if value is not None)
    return " -> ".join(names)


def _text(value: Value | None) -> str:
    if value is None:
        return "no such key"
    shown = "none" if value.value is None else value_text(value.value)
    return f"{shown} ({value.origin})"


def _concerns_confinement(value: Value | None) -> bool:
    assert value is not None
    table, key = value.path[:-1], str(value.path[-1])
    model = TABLES.get(tuple(map(str, table)))
    if model is None:  # a table within one
        outer = TABLES[tuple(map(str, table[:-1]))]
        model = inner_table(outer.model_fields[str(table[-1])])
        assert model is not None
    field = model.model_fields[key]
    guards_others = key in {"enable_annotations", "refused_annotations"} or key.startswith("valid_")
    filters = About.of(field).takes_effect_in is Effect.FILTER
    return filters or guards_others or bool(Annotation.of(field).loosens)
