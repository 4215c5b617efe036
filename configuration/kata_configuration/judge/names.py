"""Names of tables: misspelled ones, and those that Kata has and this runtime has not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kata_configuration.diagnostics import Code, Finding, Fix, Loss, key_name, quoted
from kata_configuration.judge.context import Context, spellings
from kata_configuration.models import FAMILIES, OTHER_NAMES, TABLES
from kata_configuration.suggestions import closest, unmistakable


def unknown_tables(context: Context) -> Iterator[Finding]:
    """Yield a finding for each name outside of the known tables, and each table that is none."""
    for name, value in context.tree.items():
        if name not in FAMILIES and name != "runtime":
            yield _stray(name, value, context)
        elif not isinstance(value, dict):
            form = "[runtime]" if name == "runtime" else f"[{name}.NAME]"
            yield Finding(Code.TYPE, (name,), "is a value, must be a table", f"write {form}", on_key=True)
        elif name in FAMILIES:
            yield from _members(name, value, context)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the name that was meant, or those that there are."""
    best = closest(name, known)
    return f"did you mean {quoted(best)}?" if best else "use one of " + ", ".join(known)


def _members(family: str, members: Mapping[str, Any], context: Context) -> Iterator[Finding]:
    for name, value in members.items():
        path = (family, name)
        known = name in FAMILIES[family] or (family == "hypervisor" and name in OTHER_NAMES)
        if known and isinstance(value, dict):
            yield from _other_name(path, members)
        elif known:
            hint = f"write [{key_name(path)}]"
            yield Finding(Code.TYPE, path, "is a value, must be a table", hint, on_key=True)
        elif not isinstance(value, dict):
            yield _outside(path, value, context)
        elif removed := _removed(path, value, context):
            yield removed
        else:
            candidates = [*FAMILIES[family], *(OTHER_NAMES if family == "hypervisor" else ())]
            best = closest(name, candidates)
            hint = did_you_mean(name, candidates)
            fix = Fix(rename=best) if best and unmistakable(name, candidates) else None
            yield Finding(Code.UNKNOWN_TABLE, path, "unknown table", hint, on_key=True, fix=fix)


def _other_name(path: tuple[str, str], members: Mapping[str, Any]) -> Iterator[Finding]:
    """Note a table's other name, and refuse it beside the table itself."""
    family, name = path
    own = OTHER_NAMES.get(name, name)
    if family != "hypervisor" or own == name:
        return
    if own in members:
        message = f"is another name of [{family}.{own}], which is there too"
        yield Finding(Code.ALIAS_CONFLICT, path, message, "keep one of them", on_key=True)
    else:
        message = f"is another name of [{family}.{own}]"
        yield Finding(Code.OTHER_NAME, path, message, f"write {own}", on_key=True, fix=Fix(rename=own))


def _stray(name: str, value: Any, context: Context) -> Finding:
    if removed := _removed((name,), value, context):
        return removed
    if isinstance(value, dict | list):
        known = [*FAMILIES, "runtime"]
        best = closest(name, known)
        fix = Fix(rename=best) if best and unmistakable(name, known) else None
        hint = did_you_mean(name, known)
        return Finding(Code.UNKNOWN_TABLE, (name,), "unknown table", hint, on_key=True, fix=fix)
    return _outside((name,), value, context)


def _outside(path: tuple[str, ...], value: Any, context: Context) -> Finding:
    """Say which table a key belongs in that stands in none; it is moved where that is one, and is there."""
    message = "is a key outside of any table"
    name = path[-1]
    homes = context.homes(name)
    if not homes:
        from kata_configuration.judge.unknown_keys import removed_elsewhere

        if removed := removed_elsewhere(path, name, value, context):
            return replace(removed, message=removed.message.replace("is not a key of this table", message))
        known = any(name in spellings(model) for model in TABLES.values())
        hint = (
            "move it to the table of the hypervisor that is selected"
            if known and not context.model
            else "remove it"
        )
        return Finding(Code.UNKNOWN_KEY, path, message, hint, on_key=True)
    hint = "move it to " + " or ".join(f"[{key_name(home)}]" for home in homes)
    there = len(homes) == 1 and (homes[0][0] != "hypervisor" or homes[0] == context.table)
    if there and context.holds(homes[0], name, path):
        hint = f"it belongs in [{key_name(homes[0])}], which has it already: keep one of them"
        return Finding(Code.UNKNOWN_KEY, path, message, hint, on_key=True)
    fix = Fix(table=homes[0]) if there else None
    return Finding(Code.UNKNOWN_KEY, path, message, hint, on_key=True, fix=fix)


def _removed(path: tuple[str, ...], value: Any, context: Context) -> Finding | None:
    from kata_configuration.judge import removed_keys

    removed = removed_keys.TABLES.get(path)
    if removed is None:
        return None
    switches = removed_keys.SWITCHES.get(path, ())
    if switches and isinstance(value, dict) and not any(value.get(key) for key in switches):
        message = f"{removed.story}; nothing in it is switched on"
        return Finding(Code.INERT, path, message, "remove it", on_key=True)
    advice = removed.advice
    if removed.becomes and (context.model is None or removed.becomes not in context.model.model_fields):
        advice = f"remove it: {context.selected} does not support what it became"
    elif removed.becomes:
        home = context.table or ("hypervisor", context.selected or "")
        advice = f"write [{key_name((*home, removed.becomes))}]"
    loss = Loss.SOMETHING if removed.lost else Loss.NOTHING
    return Finding(Code.UNSUPPORTED, path, removed.story, advice, on_key=True, loss=loss)
