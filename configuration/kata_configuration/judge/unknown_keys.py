"""A key that its table does not have: misspelt, misplaced, retired, or known to Kata and not honoured here.

Imported only when a file has such a key.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from kata_configuration.diagnostics import Code, Finding, Fix, KeyPath, key_name, quoted
from kata_configuration.judge import removed_keys
from kata_configuration.judge.names import spellings
from kata_configuration.judge.removed_keys import RemovedKey
from kata_configuration.models import INEFFECTIVE, PLANNED, TABLES, HypervisorTable, Table, own_path
from kata_configuration.models.base import Indifferent, Instead, Protects
from kata_configuration.parse.toml_text import value_text
from kata_configuration.suggestions import closest, unmistakable

NOT_HONOURED = "is known to Kata and not supported by this version"
NO_EFFECT = "is read by Kata and acted on by nobody"
HARMLESS = "the value asks for nothing"


def unknown_key(path: KeyPath, model: type[Table], value: object) -> Finding:
    """Say what became of a key that its table's model does not have. path: of the key, as the file says."""
    table, key = own_path(path[:-1]), str(path[-1])
    if table not in TABLES:  # a table inside of a table: its own words only
        return _misspelt(path, model, ())
    if stone := removed_keys.find(table, key):
        return _retired(path, model, stone, value)
    if planned := _declared(PLANNED.get(table), key):
        return _unhonoured(path, planned, key, value, NOT_HONOURED)
    if others := [name for name in _relatives(table) if _anywhere(name, key)]:
        return _others(path, key, others, value)
    if ineffective := _declared(INEFFECTIVE[table[0]], key):
        return _unhonoured(path, ineffective, key, value, NO_EFFECT)
    if home := next((name for name in TABLES if _anywhere(name, key)), None):
        hint, fix = f"it belongs in [{key_name(home)}]", Fix(table=home)
        return Finding(Code.FOREIGN_KEY, path, "is not a key of this table", hint, on_key=True, fix=fix)
    return _misspelt(path, model, table)


def _retired(path: KeyPath, model: type[Table], stone: RemovedKey, value: object) -> Finding:
    harmless = value == stone.harmless and type(value) is type(stone.harmless)
    if (
        harmless
        or (not value and not stone.becomes and not stone.security)
        or _was_default(path, stone, value)
    ):
        return Finding(Code.INERT, path, f"{stone.story}; {HARMLESS}", "remove it", on_key=True)
    code = Code.FOREIGN_CONFINEMENT if stone.security else Code.FOREIGN_KEY
    hint, fix = _successor(path, model, stone, value) if stone.becomes else (stone.advice, None)
    return Finding(code, path, stone.story, hint, on_key=True, fix=fix)


def _was_default(path: KeyPath, stone: RemovedKey, value: object) -> bool:
    """Whether what a key became is not honoured yet, and the value asks for nothing of it."""
    planned = _declared(PLANNED.get(own_path(path[:-1])), stone.becomes)
    if planned is None:
        return False
    if stone.convert is not None:
        if not isinstance(value, int):
            return False
        value = stone.convert(value)
    return _asks_for_nothing(planned, stone.becomes, value)


def _successor(path: KeyPath, model: type[Table], stone: RemovedKey, value: object) -> tuple[str, Fix | None]:
    """Say what to write in a retired key's place, and mend it where that is one change of the statement."""
    family, _, name = stone.becomes.rpartition(".")
    home = next((table for table in TABLES if table[0] == family), ()) if family else own_path(path[:-1])
    if name not in (TABLES[home] if family else model).model_fields:
        return f"remove it: what it became, {name}, is not supported by this version", None
    if family:
        return f"move it to [{key_name(home)}]", Fix(table=home) if name == path[-1] else None
    if stone.convert is None:
        return stone.advice or f"write {name}", Fix(rename=name)
    if isinstance(value, int):
        new = stone.convert(value)
        return f"write {name} = {value_text(new)}", Fix(rename=name, value=new)
    return stone.advice or f"write {name}", None


def _unhonoured(path: KeyPath, model: type[Table], key: str, value: object, why: str) -> Finding:
    field = model.model_fields[model.aliases.get(key, key)]
    if instead := next((item.clause for item in field.metadata if isinstance(item, Instead)), ""):
        why += f": {instead}"
    if _asks_for_nothing(model, key, value):
        return Finding(Code.INERT, path, f"{why}; {HARMLESS}", "remove it", on_key=True)
    if _protects(model, key, value):
        hint = "remove it only where pods can do without this protection"
        return Finding(Code.UNPROTECTED, path, why, hint, on_key=True)
    return Finding(Code.UNSUPPORTED, path, why, "remove it", on_key=True)


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
    return Finding(Code.FOREIGN_KEY, path, message, "remove it", on_key=True)


def _asks_for_nothing(model: type[Table], key: str, value: object) -> bool:
    """Whether a value is the key's default, or empty: then it does not matter who honours it."""
    name = model.aliases.get(key, key)
    field = model.model_fields[name]
    if any(isinstance(item, Indifferent) for item in field.metadata):
        return isinstance(value, bool)
    if name.startswith("valid_"):
        return True  # limits what annotations may do, and there is nothing that they could do
    try:
        parsed = getattr(model.model_validate(model.example() | {name: value}), name)
    except ValidationError:
        return value in ("", []) or (value == 0 and not isinstance(value, bool))
    if isinstance(parsed, Table):
        switch = next(iter(type(parsed).model_fields))
        return getattr(parsed, switch) is False  # what is off has settings in vain
    if isinstance(parsed, bool):
        return bool(parsed == field.default)
    return not parsed or bool(parsed == field.default)


def _misspelt(path: KeyPath, model: type[Table], table: tuple[str, ...]) -> Finding:
    key = str(path[-1])
    hint, fix = "remove it", None
    if best := closest(key, spellings(model)):
        name = model.aliases.get(best, best)
        hint = f"did you mean {quoted(name)}?"
        fix = Fix(rename=name) if unmistakable(key, spellings(model)) else None
    else:
        for other in _neighbours(table):
            if best := closest(key, spellings(TABLES[other])):
                hint = f"did you mean {quoted(best)} in [{key_name(other)}]?"
                break
    return Finding(Code.UNKNOWN_KEY, path, "unknown key", hint, on_key=True, fix=fix)


def _neighbours(table: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the tables that a key may have been meant for: of other families, of hypervisors the first."""
    if table:
        yield from (name for name in TABLES if name[0] != table[0] and name[1:] in ((), ("qemu",), ("kata",)))


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
