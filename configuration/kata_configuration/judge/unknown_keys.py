"""A key that its table does not have: misspelled, misplaced, removed, or known to Kata and not honoured here.

Imported only when a file has such a key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import ValidationError

from kata_configuration.diagnostics import Code, Finding, Fix, KeyPath, Loss, key_name, quoted
from kata_configuration.judge import removed_keys
from kata_configuration.judge.context import Context, lookup, spellings
from kata_configuration.judge.removed_keys import RemovedKey
from kata_configuration.models import INEFFECTIVE, PLANNED, TABLES, HypervisorTable, Table, own_path
from kata_configuration.models.base import (
    ActedOnBy,
    Annotation,
    Indifferent,
    Instead,
    Protects,
    inner_table,
)
from kata_configuration.parse.toml_text import value_text
from kata_configuration.suggestions import closest, unmistakable

NOT_HONOURED = "is known to Kata and not supported by this version"
HARMLESS = "the value changes nothing"


def unknown_key(path: KeyPath, model: type[Table], value: object, context: Context) -> Finding:
    """Say what became of a key that its table's model does not have. path: of the key, as the file says."""
    table, key = own_path(path[:-1]), str(path[-1])
    if table not in TABLES:  # a table inside of a table: its own names only
        return _misspelled(path, model, (), context)
    if removed := removed_keys.find(table, key):
        return _removed(path, model, removed, value, context)
    if planned := _declared(PLANNED.get(table), key):
        return _unhonoured(path, planned, value, NOT_HONOURED, context)
    if others := [name for name in _relatives(table) if _anywhere(name, key)]:
        return _others(path, key, others, value)
    if ineffective := _declared(INEFFECTIVE[table[0]], key):
        return _ineffective(path, ineffective, value, context)
    if inner := _inner_home(table, key):
        return _within(path, inner)
    return _misplaced(path, key, value, context) or _misspelled(path, model, table, context)


def _ineffective(path: KeyPath, model: type[Table], value: object, context: Context) -> Finding:
    key = str(path[-1])
    metadata = model.model_fields[model.aliases.get(key, key)].metadata
    actor = next((item.runtime for item in metadata if isinstance(item, ActedOnBy)), "")
    why = f"is acted on by {actor} only" if actor else "is read by Kata and acted on by no runtime"
    found = _unhonoured(path, model, value, why, context)
    return found if actor else replace(found, loss=Loss.NOTHING)


def _misplaced(path: KeyPath, key: str, value: object, context: Context) -> Finding | None:
    """Say where a key belongs that other tables have; None when none has it.

    It is moved where there is one such table, which is there and does not have it yet. A program's path is
    never moved: what the host runs is not for us to guess.
    """
    message = "is not a key of this table"
    homes = context.homes(key)
    if not homes:
        return _elsewhere(path, key, value, message, context)
    home = homes[0]
    field = TABLES[own_path(home)].model_fields.get(TABLES[own_path(home)].aliases.get(key, key))
    there = home[0] != "hypervisor" or home == context.table
    if len(homes) == 1 and context.holds(home, key, path):
        hint = f"it belongs in [{key_name(home)}], which has it already: keep one of them"
        loss = Loss.NOTHING if lookup(context.tree, (*home, key)) == value else Loss.UNDECIDED
        return Finding(Code.FOREIGN_KEY, path, message, hint, on_key=True, loss=loss)
    if len(homes) == 1 and there and field is not None and not Annotation.of(field).listed_in:
        hint, fix = f"it belongs in [{key_name(home)}]", Fix(table=home)
        return Finding(Code.FOREIGN_KEY, path, message, hint, on_key=True, fix=fix)
    places = " or ".join(f"[{key_name(home)}]" for home in homes)
    hint = f"write it in {places} if that is what is meant, or remove it"
    return Finding(Code.FOREIGN_KEY, path, message, hint, on_key=True, loss=Loss.UNDECIDED)


def _elsewhere(path: KeyPath, key: str, value: object, message: str, context: Context) -> Finding | None:
    """Say of a key that none of the tables in force honours, which tables have it; None when none has it."""
    tables = [name for name in TABLES if _anywhere(name, key)]
    if not tables:
        return removed_elsewhere(path, key, value, context)
    if any(_asks_for_nothing(owner, key, value) for name in tables for owner in _owners(name, key)):
        return Finding(Code.INERT, path, f"{message}; {HARMLESS}", "remove it", on_key=True)
    names = ", ".join(f"[{key_name(name)}]" for name in tables)
    own = [name for name in tables if name[0] != "hypervisor" or name[1] == context.selected]
    unhonoured = f"; [{key_name(own[0])}] has it, and this version does not support it" if own else ""
    message += unhonoured or f", but of {names}, of which none is selected"
    return Finding(Code.FOREIGN_KEY, path, message, "remove it", on_key=True)


def removed_elsewhere(path: KeyPath, key: str, value: object, context: Context) -> Finding | None:
    """Say what became of a key that was one of a table of another family; None where it never was."""
    for home, model in TABLES.items():
        if home[0] == path[0] or (home[0] == "hypervisor" and home[1] != context.selected):
            continue
        if removed := removed_keys.find(home, key):
            hint = "remove it"
            if removed.becomes:
                hint, _ = _successor((*home, key), model, removed, value, context)
            moved = removed.becomes and not hint.startswith("remove it")
            hint += f" in [{key_name(home)}]" if moved and "[" not in hint else ""
            message = f"is not a key of this table; as a key of [{key_name(home)}] it {removed.story}"
            loss = Loss.UNDECIDED if moved else Loss.SOMETHING
            return Finding(Code.FOREIGN_KEY, path, message, hint, on_key=True, loss=loss)
    return None


def _inner_home(table: tuple[str, ...], key: str) -> tuple[KeyPath, bool] | None:
    """Return the table inside of a table that has a key, and whether it is honoured; None without one."""
    for part, honoured in ((TABLES.get(table), True), (PLANNED.get(table), False)):
        for name, field in part.model_fields.items() if part else ():
            inner = inner_table(field)
            if inner is not None and _declared(inner, key):
                return (*table, name), honoured
    return None


def _within(path: KeyPath, home: tuple[KeyPath, bool]) -> Finding:
    inner, honoured = (*path[:-1], home[0][-1]), home[1]
    message = f"is a key of [{key_name(inner)}]"
    if honoured:
        hint, fix = f"it belongs in [{key_name(inner)}]", Fix(table=inner)
        return Finding(Code.FOREIGN_KEY, path, "is not a key of this table", hint, on_key=True, fix=fix)
    return Finding(Code.UNSUPPORTED, path, f"{message}, which {NOT_HONOURED}", "remove it", on_key=True)


def _removed(
    path: KeyPath, model: type[Table], removed: RemovedKey, value: object, context: Context
) -> Finding:
    harmless = value == removed.harmless and type(value) is type(removed.harmless)
    if (
        harmless
        or (not value and not removed.becomes and not removed.security)
        or _was_default(path, removed, value)
    ):
        return Finding(Code.INERT, path, f"{removed.story}; {HARMLESS}", "remove it", on_key=True)
    code = Code.FOREIGN_CONFINEMENT if removed.security else Code.FOREIGN_KEY
    hint, fix = (
        _successor(path, model, removed, value, context) if removed.becomes else (removed.advice, None)
    )
    replaced = hint.endswith(" already")
    loss = (
        Loss.PROTECTION
        if removed.security
        else Loss.SOMETHING
        if removed.lost and not replaced
        else Loss.NOTHING
    )
    return Finding(code, path, removed.story, hint, on_key=True, fix=fix, loss=loss)


def _was_default(path: KeyPath, removed: RemovedKey, value: object) -> bool:
    """Whether what a key became is not honoured yet, and the value changes nothing of it."""
    planned = _declared(PLANNED.get(own_path(path[:-1])), removed.becomes)
    if planned is None:
        return False
    if removed.convert is not None:
        if not isinstance(value, int):
            return False
        value = removed.convert(value)
    return _asks_for_nothing(planned, removed.becomes, value)


def _successor(
    path: KeyPath, model: type[Table], removed: RemovedKey, value: object, context: Context
) -> tuple[str, Fix | None]:
    """Say what to write in a removed key's place, and fix it where that is one change of the statement."""
    family, _, name = removed.becomes.rpartition(".")
    homes = [home for home in context.homes(name) if home[0] == family] if family else [path[:-1]]
    if not homes or (not family and name not in model.model_fields):
        return f"remove it: what it became, {name}, is not supported by this version", None
    if context.holds(homes[0], name, path):
        return f"remove it: [{key_name(homes[0])}] has {name} already", None
    if family:
        home = f"[{key_name(homes[0])}]"
        if name != path[-1]:
            return f"write {name} in {home}", None
        return f"move it to {home}", Fix(table=homes[0])
    if removed.convert is None:
        return removed.advice or f"write {name}", Fix(rename=name)
    if isinstance(value, int):
        new = removed.convert(value)
        return f"write {name} = {value_text(new)}", Fix(rename=name, value=new)
    return removed.advice or f"write {name}", None


def _unhonoured(path: KeyPath, model: type[Table], value: object, why: str, context: Context) -> Finding:
    key = str(path[-1])
    instead = _instead(model, key)
    if not _is_lost(instead, path[:-1], context) and _is_valid(model, key, value):
        return Finding(Code.INERT, path, f"is not needed: {instead.clause}", "remove it", on_key=True)
    if instead.clause:
        why += f": {instead.clause}"
    if _asks_for_nothing(model, key, value):
        return Finding(Code.INERT, path, f"{why}; {HARMLESS}", "remove it", on_key=True)
    if _protects(model, key, value):
        hint = "remove it only where pods can do without this protection"
        return Finding(Code.UNPROTECTED, path, why, hint, on_key=True, loss=Loss.PROTECTION)
    return Finding(Code.UNSUPPORTED, path, why, instead.advice, on_key=True)


def _instead(model: type[Table] | None, key: str) -> Instead:
    """Return what happens in place of a key of a table that is not honoured; nothing is said without one."""
    metadata = model.model_fields[model.aliases.get(key, key)].metadata if model else ()
    return next((item for item in metadata if isinstance(item, Instead)), Instead(""))


def _is_lost(instead: Instead, table: KeyPath, context: Context) -> bool:
    """Whether what a key of a table asks for is missing: it may depend on another key of that table."""
    if instead.lost_with is None:
        return instead.lost
    key, value = instead.lost_with
    written = lookup(context.tree, (*table, key))
    if written is None:
        field = TABLES[own_path(table)].model_fields.get(key)
        written = field.default if field else value
    return bool(written == value)


def _protects(model: type[Table], key: str, value: object) -> bool:
    metadata = model.model_fields[model.aliases.get(key, key)].metadata
    return any(isinstance(item, Protects) and item.value in (None, value) for item in metadata)


def _others(path: KeyPath, key: str, others: list[tuple[str, ...]], value: object) -> Finding:
    names = ", ".join(str(name[-1]) for name in others)
    model = TABLES[own_path(path[:-1])]
    title = model.title if issubclass(model, HypervisorTable) else "this table"
    message = f"is not a key of {title}, but of {names}"
    declared = [owner for name in others for owner in _owners(name, key)]
    if any(_asks_for_nothing(owner, key, value) for owner in declared):
        return Finding(Code.INERT, path, f"{message}; {HARMLESS}", "remove it", on_key=True)
    instead = _instead(_declared(INEFFECTIVE[own_path(path)[0]], key), key)
    message += f": {instead.clause}" if instead.clause else ""
    return Finding(Code.FOREIGN_KEY, path, message, instead.advice, on_key=True)


def _asks_for_nothing(model: type[Table], key: str, value: object) -> bool:
    """Whether a value is the key's default, or empty: then it does not matter who honours it."""
    name = model.aliases.get(key, key)
    field = model.model_fields[name]
    if any(isinstance(item, Indifferent) for item in field.metadata):
        return isinstance(value, bool)
    if name.startswith("valid_"):
        return True  # limits what annotations may do, and there is nothing that they could do
    try:
        parsed = _parsed(model, name, value)
    except ValidationError:
        return value in ("", []) or (value == 0 and not isinstance(value, bool))
    if isinstance(parsed, Table):
        switch = next(iter(type(parsed).model_fields))
        return getattr(parsed, switch) is False  # what is off has settings in vain
    if isinstance(parsed, bool):
        return bool(parsed == field.default)
    return not parsed or bool(parsed == field.default)


def _parsed(model: type[Table], name: str, value: object) -> object:
    """Return what a table makes of a key's value. Raises ValidationError."""
    return getattr(model.model_validate(model.example() | {name: value}), name)


def _is_valid(model: type[Table], key: str, value: object) -> bool:
    try:
        _parsed(model, model.aliases.get(key, key), value)
    except ValidationError:
        return False
    return True


def _misspelled(path: KeyPath, model: type[Table], table: KeyPath, context: Context) -> Finding:
    key = str(path[-1])
    hint, fix = "remove it", None
    if best := closest(key, spellings(model)):
        name = model.aliases.get(best, best)
        if context.holds(path[:-1], name, path):
            hint = f"did you mean {quoted(name)}, which is set already? keep one of them"
            return Finding(Code.UNKNOWN_KEY, path, "unknown key", hint, on_key=True)
        hint = f"did you mean {quoted(name)}?"
        fix = Fix(rename=name) if unmistakable(key, spellings(model)) else None
    else:
        for home, other in _neighbours(table, context):
            if best := closest(key, spellings(other)):
                hint = f"did you mean {quoted(best)} in [{key_name(home)}]?"
                break
    return Finding(Code.UNKNOWN_KEY, path, "unknown key", hint, on_key=True, fix=fix)


def _neighbours(table: KeyPath, context: Context) -> Iterator[tuple[KeyPath, type[Table]]]:
    """Yield the tables of other families that a key may have been meant for; of hypervisors the selected."""
    for path, model in TABLES.items() if table else ():
        if path[0] != table[0] and (path[0] != "hypervisor" or path[1] == context.selected):
            yield (context.table or path) if path[0] == "hypervisor" else path, model


def _relatives(table: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (name for name in TABLES if name[0] == table[0] and name != table)


def _anywhere(table: tuple[str, ...], key: str) -> bool:
    return bool(_owners(table, key))


def _owners(table: tuple[str, ...], key: str) -> list[type[Table]]:
    """Return the parts of a table's model, honoured and planned, that have a key."""
    parts = (_declared(TABLES[table], key), _declared(PLANNED.get(table), key))
    return [part for part in parts if part is not None]


def _declared(model: type[Table] | None, key: str) -> type[Table] | None:
    return model if model is not None and key in spellings(model) else None
