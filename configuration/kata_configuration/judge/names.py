"""Names of tables: misspelt ones, and those that Kata has and this runtime has not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kata_configuration.diagnostics import Code, Finding, Fix, key_name, quoted
from kata_configuration.models import AVAILABLE, FAMILIES, OTHER_NAMES, TABLES, Table
from kata_configuration.suggestions import closest, unmistakable


def unknown_tables(tree: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding for each name outside of the known tables, and each table that is none."""
    for name, value in tree.items():
        if name not in FAMILIES and name != "runtime":
            yield _stray(name, value)
        elif not isinstance(value, dict):
            form = "[runtime]" if name == "runtime" else f"[{name}.NAME]"
            yield Finding(Code.TYPE, (name,), "is a value, must be a table", f"write {form}", on_key=True)
        elif name in FAMILIES:
            yield from _members(name, value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the name that was meant, or those that there are."""
    best = closest(name, known)
    return f"did you mean {quoted(best)}?" if best else "use one of " + ", ".join(known)


def spellings(model: type[Table]) -> list[str]:
    """Return every name that a table's keys have."""
    return [*model.model_fields, *model.aliases]


def _members(family: str, members: Mapping[str, Any]) -> Iterator[Finding]:
    for name, value in members.items():
        path = (family, name)
        known = name in FAMILIES[family] or (family == "hypervisor" and name in OTHER_NAMES)
        if known and isinstance(value, dict):
            yield from _other_name(path, members)
        elif known:
            hint = f"write [{key_name(path)}]"
            yield Finding(Code.TYPE, path, "is a value, must be a table", hint, on_key=True)
        elif not isinstance(value, dict):
            only = ", ".join(f"[{key_name((family, known))}]" for known in FAMILIES[family])
            hint = f"move it to {only}"
            yield Finding(Code.UNKNOWN_KEY, path, "is a key outside of any table", hint, on_key=True)
        elif retired := _retired(path, value):
            yield retired
        else:
            words = [*FAMILIES[family], *(OTHER_NAMES if family == "hypervisor" else ())]
            best = closest(name, words)
            hint = did_you_mean(name, words)
            fix = Fix(rename=best) if best and unmistakable(name, words) else None
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


def _stray(name: str, value: Any) -> Finding:
    if retired := _retired((name,), value):
        return retired
    if isinstance(value, dict | list):
        known = [*FAMILIES, "runtime"]
        best = closest(name, known)
        fix = Fix(rename=best) if best and unmistakable(name, known) else None
        hint = did_you_mean(name, known)
        return Finding(Code.UNKNOWN_TABLE, (name,), "unknown table", hint, on_key=True, fix=fix)
    homes = _homes(name)
    hint = "move it to " + " or ".join(f"[{key_name(home)}]" for home in homes) if homes else "remove it"
    fix = Fix(table=homes[0]) if len(homes) == 1 else None
    return Finding(Code.UNKNOWN_KEY, (name,), "is a key outside of any table", hint, on_key=True, fix=fix)


def _homes(name: str) -> list[tuple[str, ...]]:
    """Return the tables that have a key; of hypervisors those with a driver, or else the first."""
    homes = [table for table, model in TABLES.items() if name in spellings(model)]
    others = [table for table in homes if table[0] == "hypervisor" and table[1] not in AVAILABLE]
    return [table for table in homes if table not in others] or others[:1]


def _retired(path: tuple[str, ...], value: Any) -> Finding | None:
    from kata_configuration.judge import removed_keys

    stone = removed_keys.TABLES.get(path)
    if stone is None:
        return None
    switches = removed_keys.SWITCHES.get(path, ())
    if switches and isinstance(value, dict) and not any(value.get(key) for key in switches):
        message = f"{stone.story}; nothing in it is switched on"
        return Finding(Code.INERT, path, message, "remove it", on_key=True)
    return Finding(Code.UNSUPPORTED, path, stone.story, stone.advice, on_key=True)
