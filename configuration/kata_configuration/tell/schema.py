"""The file format as a JSON Schema (draft 2020-12), from the models, for editors and other validators.

It knows what this version honours, and nothing of this host. What no schema can say, such as a key against
another one's value, the linter alone knows.
"""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from kata_configuration.models import AGENTS, HYPERVISORS, OTHER_NAMES, TABLES, Runtime, Table
from kata_configuration.models.base import About, inner_table
from kata_configuration.tell import facts

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


# No control character, which is as much of "printable" as a pattern can say.
PRINTABLE: Schema = {"not": {"pattern": r"[\u0000-\u001f\u007f-\u009f]"}}


def build() -> Schema:
    """Return the schema of a whole file."""
    hypervisors = {name: _table(model, complete=False) for name, model in HYPERVISORS.items()}
    for other, own in OTHER_NAMES.items():
        hypervisors[other] = hypervisors[own] | {"deprecated": True}
    runtime = _table(TABLES["runtime",])
    runtime["properties"]["hypervisor_name"]["enum"] = [*HYPERVISORS, *OTHER_NAMES]
    runtime["properties"]["agent_name"]["enum"] = [*AGENTS]
    return {
        "$schema": DIALECT,
        "title": "Configuration of the Kata runtime",
        **_closed(
            {
                "hypervisor": _closed(hypervisors),
                "agent": _closed({name: _table(model) for name, model in AGENTS.items()}),
                "runtime": runtime,
            }
        ),
        "allOf": [_selected(name) for name in [*HYPERVISORS, *OTHER_NAMES]],
    }


def _table(model: type[Table], *, complete: bool = True) -> Schema:
    """Return a table's schema; unless `complete`, its required keys may be absent."""
    properties = {}
    for name, field in model.model_fields.items():
        properties[name] = _key(field)
        for alias in (alias for alias, own in model.aliases.items() if own == name):
            properties[alias] = _key(field) | {"deprecated": True}
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    schema = {"description": facts.sentence(model), **_closed(properties)}
    return schema | {"required": required} if complete and required else schema


def _closed(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _key(field: FieldInfo) -> Schema:
    schema = _value(field)
    schema["description"] = _description(field)
    if not field.is_required() and field.default is not None and not inner_table(field):
        schema["default"] = _plain(field.default)
    return schema


def _value(field: FieldInfo) -> Schema:
    inner, kind = inner_table(field), facts.kind(field)
    if inner:
        table = _table(inner)
        return {"type": "array", "items": table} if kind == "array of tables" else table
    if kind.startswith("array"):
        item: Schema = {"type": "integer" if kind.endswith("integers") else "string"}
        if item["type"] == "string":
            choices = facts.choices(field)
            item |= {"enum": [*choices]} if choices else PRINTABLE | {"pattern": facts.item_form(field) or ""}
        return {"type": "array", "items": item}
    if choices := facts.choices(field) or facts.powers(field):
        return {"enum": list(choices)}
    if kind == "path":
        optional = not field.is_required() and field.default is None
        pattern = "^(/|$)" if optional else "^/"
        return {"type": "string", "pattern": pattern} | PRINTABLE
    low, high = facts.limits(field)
    bounds: Schema = {"minimum": low, "maximum": high, "pattern": facts.form(field)}
    if kind == "string":
        bounds |= PRINTABLE
    return {"type": kind} | {word: bound for word, bound in bounds.items() if bound is not None}


def _description(field: FieldInfo) -> str:
    unit = facts.unit(field)
    return About.of(field).sentence + (f" In {unit}." if unit else "")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float) else str(value)


def _selected(name: str) -> Schema:
    """Demand the table of a hypervisor where it is the selected one, and in it what it cannot be without."""
    is_named: Schema = {"properties": {"hypervisor_name": {"const": name}}}
    is_chosen: Schema = {"properties": {"runtime": is_named}}
    if name != Runtime.model_fields["hypervisor_name"].default:
        is_named["required"], is_chosen["required"] = ["hypervisor_name"], ["runtime"]
    own = OTHER_NAMES.get(name, name)
    model = HYPERVISORS[own]
    table: Schema = {"required": [key for key, field in model.model_fields.items() if field.is_required()]}
    if "image" in model.model_fields:
        table["anyOf"] = [{"required": ["image"]}, {"required": ["initrd"]}]
    spellings = [own, *(other for other in OTHER_NAMES if OTHER_NAMES[other] == own)]
    tables = {"anyOf": [{"required": [word], "properties": {word: table}} for word in spellings]}
    return {"if": is_chosen, "then": {"required": ["hypervisor"], "properties": {"hypervisor": tables}}}
