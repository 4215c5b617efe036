"""What the models say of a key, as text: for the shipped files, the reference and `config explain`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from kata_configuration.models import (
    AVAILABLE,
    INEFFECTIVE,
    PLANNED,
    TABLES,
    HypervisorTable,
    Table,
)
from kata_configuration.models.base import About, Form, PowerOfTwo, Unit, inner_table, listed_values
from kata_configuration.parse.toml_text import value_text

HONOURED = "honoured"
WITH_DRIVER = "checked; no driver in this version"
NOT_YET = "known, not supported by this version"
NO_EFFECT = "known, without effect"


@dataclass(frozen=True, slots=True)
class Key:
    """A key at one place. path: from the root. status: what this version makes of it."""

    path: tuple[str, ...]
    field: FieldInfo
    status: str
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        """The key's own name."""
        return self.path[-1]


def every_key() -> Iterator[Key]:
    """Yield every key of every table: honoured, planned, and without effect."""
    for path, model in TABLES.items():
        available = path[0] != "hypervisor" or path[1] in AVAILABLE
        yield from table_keys(path, model, HONOURED if available else WITH_DRIVER)
    for path, model in PLANNED.items():
        yield from table_keys(path, model, NOT_YET)
    for family, model in INEFFECTIVE.items():
        for path in TABLES:
            if path[0] == family:
                yield from table_keys(path, model, NO_EFFECT)


def table_keys(path: tuple[str, ...], model: type[Table], status: str) -> Iterator[Key]:
    """Yield the keys of a table, and of the tables in it."""
    for name, field in model.model_fields.items():
        aliases = tuple(alias for alias, own in model.aliases.items() if own == name)
        yield Key((*path, name), field, status, aliases)
        if inner := inner_table(field):
            yield from table_keys((*path, name), inner, status)


def title(name: str) -> str:
    """Return the name of a hypervisor as people write it."""
    model = TABLES["hypervisor", name]
    return model.title if issubclass(model, HypervisorTable) else name


def sentence(model: type[Table]) -> str:
    """Return what a table is about."""
    return (model.__doc__ or "").strip()


def unit(field: FieldInfo) -> str:
    """Return a key's unit, or ""."""
    return next((item.symbol for item in field.metadata if isinstance(item, Unit)), "")


def form(field: FieldInfo) -> str | None:
    """Return the regular expression of a text's form, or None."""
    return next((item.pattern for item in field.metadata if isinstance(item, Form)), None)


def item_form(field: FieldInfo) -> str | None:
    """Return the regular expression of the form of an array's elements, or None."""
    arguments = typing.get_args(field.annotation)
    metadata = getattr(arguments[0], "__metadata__", ()) if arguments else ()
    return next((item.pattern for item in metadata if isinstance(item, Form)), None)


def powers(field: FieldInfo) -> tuple[int, ...]:
    """Return the numbers that a key may have, where they are the powers of two in its range."""
    rule = next((item for item in field.metadata if isinstance(item, PowerOfTwo)), None)
    if rule is None:
        return ()
    low, high = limits(field)
    numbers = (1 << bit for bit in range(high.bit_length()))
    zero = (0,) if rule.or_zero else ()
    return (*zero, *(number for number in numbers if max(low, rule.least) <= number <= high))


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """Return the values that a key may have, or each entry of its array, where they are listed."""
    return listed_values(field.annotation)


def limits(field: FieldInfo) -> tuple[Any, Any]:
    """Return the least and the greatest value, None where there is none."""
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    return low, high


def span(field: FieldInfo) -> str:
    """Return a key's range as text, or ""."""
    low, high = limits(field)
    if low is None:
        return ""
    return f"{low} or more" if high is None else f"{low} to {high}"


def kind(field: FieldInfo) -> str:
    """Return a key's type by TOML's names."""
    annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(item for item in typing.get_args(annotation) if item is not type(None))
    while hasattr(annotation, "__metadata__"):
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is tuple:
        if inner_table(field):
            return "array of tables"
        item = typing.get_args(annotation)[0]
        while hasattr(item, "__metadata__"):
            item = typing.get_args(item)[0]
        return "array of integers" if item is int else "array of strings"
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return "table"
    if values := choices(field):
        return "boolean" if isinstance(values[0], bool) else "string"
    plain = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "path"}
    return plain[typing.cast(type, annotation)]


def default(field: FieldInfo) -> str:
    """Return a key's default as it would be written, "required", or "none" where the key is simply absent."""
    if field.is_required():
        return "required"
    value = field.get_default()
    if value is None:
        return "none"
    return "see its keys" if isinstance(value, Table) else value_text(value)


def example(field: FieldInfo) -> str:
    """Return a key's default, or where it has none a value that shows its form, as it would be written."""
    value = None if field.is_required() else field.get_default()
    shown = About.of(field).example if value is None else value
    return value_text("" if shown is None else shown)
