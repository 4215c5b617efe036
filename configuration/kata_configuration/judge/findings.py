"""From pydantic's errors to findings in plain sentences. Imported only when there are errors."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kata_configuration.diagnostics import Code, Finding, Fix, KeyPath, Loss, quoted
from kata_configuration.judge.context import Context
from kata_configuration.judge.removed_keys import VALUES
from kata_configuration.judge.unknown_keys import unknown_key
from kata_configuration.models import Table
from kata_configuration.models.base import About, Instead, Unit, inner_table, listed_values
from kata_configuration.suggestions import closest, unmistakable

# Checked in order: bool is an int to Python, and not to TOML.
_TOML_NAMES = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a float"),
    (str, "a string"),
    (list, "an array"),
    (dict, "a table"),
    ((datetime.date, datetime.time), "a date or time"),
)
_WANTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "path_type": "a string with an absolute path",
    "tuple_type": "an array of strings",
    "model_type": "a table",
}
MEBIBYTE = 1 << 20
# A size with its unit. Without the "i", Kubernetes counts in powers of ten, and QEMU does not.
_SIZE = re.compile(r"(?P<number>\d{1,9})\s*(?P<prefix>[mgt])(?P<binary>i?)b?", re.ASCII)


def describe(
    error: ValidationError, model: type[Table], path: KeyPath, context: Context
) -> Iterator[Finding]:
    """Yield the findings that a table's validation error stands for. path: of the table."""
    for detail in error.errors(include_url=False):
        location = (*path, *detail["loc"])
        owner, field = _declaration(model, detail["loc"])
        if detail["type"] == "extra_forbidden":
            yield unknown_key(location, owner, detail["input"], context)
        else:
            handler = _HANDLERS.get(detail["type"], _wrong_type)
            yield from handler(location, detail, field)


def _declaration(model: type[Table], location: KeyPath) -> tuple[type[Table], FieldInfo | None]:
    """Return the innermost table that a location leads into, and the field there, if it has one."""
    field = None
    for part in location:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            inner = inner_table(field) if field else None
            if inner is None or part == location[-1]:
                break
            model = inner
    return model, field


def _missing(path: KeyPath, detail: ErrorDetails, field: FieldInfo | None) -> Iterator[Finding]:
    example = About.of(field).example if field else None
    hint = f"add it, such as {path[-1]} = {quoted(example)}" if example else "add it"
    yield Finding(Code.MISSING_KEY, path, "is required", hint, on_key=True)


def _wrong_type(path: KeyPath, detail: ErrorDetails, field: FieldInfo | None) -> Iterator[Finding]:
    value, kind = detail["input"], detail["type"]
    message = f"is {_toml_name(value)}, must be {_WANTED[kind]}"
    hint, fix = _type_hint(value, kind, _unit(field))
    yield Finding(Code.TYPE, path, message, hint, fix=fix)


def _type_hint(value: Any, kind: str, unit: str) -> tuple[str, Fix | None]:
    """Say how to write a value of the wrong type, and fix it where only one thing can be meant."""
    if isinstance(value, str):
        plain = value.strip().casefold()
        if kind == "bool_type" and plain in ("true", "false"):
            return f"write {plain} without quotes", Fix(value=plain == "true")
        # More digits than an integer of TOML has are no slip of the pen.
        if kind in ("int_type", "float_type") and plain.isdecimal() and len(plain) < 19:
            return f"write {plain} without quotes", Fix(value=int(plain))
        if kind == "int_type" and unit == " MiB" and (size := _SIZE.fullmatch(plain)):
            shown, number = f"{size['number']} {size['prefix'].upper()}iB", _mebibytes(size)
            return f"the unit is MiB: for {shown} write {number}", Fix(value=number) if size[
                "binary"
            ] else None
        if kind == "tuple_type":
            return f"write [{quoted(value)}]", Fix(value=[value])
    if kind == "int_type" and unit == " percent" and isinstance(value, float) and 0 < value <= 1:
        return f"the unit is percent: for {value} write {round(value * 100)}", None
    # A number may be text; a boolean in quotes is no value of any key, and neither is a path.
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return "put it in quotes", None
    return f"write {_WANTED[kind]}", None


def _mebibytes(size: re.Match[str]) -> int:
    return int(size["number"]) << 10 * "mgt".index(size["prefix"])


def _out_of_range(path: KeyPath, detail: ErrorDetails, field: FieldInfo | None) -> Iterator[Finding]:
    limits = detail["ctx"]
    low = "ge" in limits
    limit = limits["ge"] if low else limits["le"]
    unit = _unit(field)
    side = "below the minimum" if low else "above the maximum"
    shown = quoted(detail["input"], limit=24)
    message = f"{shown} is {side} of {limit}{unit}"
    yield Finding(Code.RANGE, path, message, _range_hint(detail["input"], limit, unit, low))


def _range_hint(value: Any, limit: Any, unit: str, low: bool) -> str:
    """Recognise a value in another unit; else name the limit."""
    if unit == " MiB" and low and value > 0 and value * 1024 >= limit:
        return f"the unit is MiB: for {value} GiB write {value * 1024}"
    if unit == " MiB" and not low and value % MEBIBYTE == 0 and value // MEBIBYTE <= limit:
        return f"the unit is MiB: for {value} bytes write {value // MEBIBYTE}"
    if unit == " seconds" and not low and value % 1000 == 0 and value // 1000 <= limit:
        return f"the unit is seconds: for {value} milliseconds write {value // 1000}"
    if unit == " milliseconds" and low and value > 0 and value * 1000 >= limit:
        return f"the unit is milliseconds: for {value} seconds write {value * 1000}"
    return f"write {limit} or {'more' if low else 'less'}"


def _not_finite(path: KeyPath, detail: ErrorDetails, field: FieldInfo | None) -> Iterator[Finding]:
    yield Finding(Code.RANGE, path, f"{detail['input']} is not a finite number", "write a number")


def _no_choice(path: KeyPath, detail: ErrorDetails, field: FieldInfo | None) -> Iterator[Finding]:
    value, choices = detail["input"], listed_values(field.annotation) if field else ()
    wanted = type(choices[0]) if choices else str
    if type(value) is not wanted:
        message = f"is {_toml_name(value)}, must be {_toml_name(choices[0])}"
        yield Finding(Code.TYPE, path, message, _one_of(choices))
        return
    if not isinstance(value, str):
        message = f"{quoted(value)} is not supported{_instead(field)}"
        yield Finding(Code.CHOICE, path, message, _one_of(choices), loss=_loss(field))
        return
    removed = VALUES.get((str(path[-1]), value))
    if removed and removed[0] in choices:
        hint, instead = f"write {quoted(removed[0])}", Fix(value=removed[0])
        yield Finding(Code.CHOICE, path, f"{quoted(value)} {removed[1]}", hint, fix=instead)
        return
    best = closest(value, choices)
    hint = f"did you mean {quoted(best)}?" if best else _one_of(choices)
    if len(choices) == 1:
        message = f"{quoted(value)} is not supported{_instead(field)}"
    else:
        message = f"{quoted(value)} is none of the allowed values"
    fix = Fix(value=best) if unmistakable(value, choices) else None
    yield Finding(Code.CHOICE, path, message, hint, fix=fix, loss=_loss(field))


def _loss(field: FieldInfo | None) -> Loss:
    """Return what is lost where a key gets its only value in place of another one."""
    lost = any(isinstance(item, Instead) and item.lost for item in field.metadata) if field else False
    return Loss.SOMETHING if lost else Loss.NOTHING


def _instead(field: FieldInfo | None) -> str:
    """Return what happens in place of a value that is not supported, where the declaration says it."""
    clauses = [item.clause for item in field.metadata if isinstance(item, Instead)] if field else []
    return f": {clauses[0]}" if clauses else ""


def _one_of(choices: tuple[Any, ...]) -> str:
    shown = [quoted(choice) for choice in choices]
    return f"only {shown[0]} is supported" if len(shown) == 1 else "use one of " + ", ".join(shown)


def _malformed(path: KeyPath, detail: ErrorDetails, field: FieldInfo | None) -> Iterator[Finding]:
    context = detail["ctx"]
    for fault in context.get("sandbox_faults", ()):
        fix = Fix(value=fault.fixed) if fault.fixed else None
        yield Finding(Code.SANDBOX_VALUE, path, fault.message, fault.hint, offset=fault.offset, fix=fix)
    if "sandbox_faults" not in context:
        message = f"{quoted(detail['input'])} {context['message']}"
        yield Finding(Code.FORM, path, message, context["hint"])


def _toml_name(value: Any) -> str:
    return next(name for kind, name in _TOML_NAMES if isinstance(value, kind))


def _unit(field: FieldInfo | None) -> str:
    units = [item.symbol for item in field.metadata if isinstance(item, Unit)] if field else []
    return f" {units[0]}" if units else ""


_Handler = Callable[[KeyPath, ErrorDetails, FieldInfo | None], Iterator[Finding]]
_HANDLERS: Mapping[str, _Handler] = MappingProxyType(
    {
        "missing": _missing,
        "greater_than_equal": _out_of_range,
        "less_than_equal": _out_of_range,
        "finite_number": _not_finite,
        "literal_error": _no_choice,
        "malformed": _malformed,
    }
)
