"""Keys and tables that no model has: misspelt, misplaced, or known to Kata and not honoured here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kata_configuration import known_keys
from kata_configuration.diagnostics import Code, Finding, KeyPath, key_name, quoted
from kata_configuration.models import FAMILIES, TABLES, Table
from kata_configuration.suggestions import closest

NOT_HONOURED = "is known to Kata and not supported by this version"


def unknown_key(path: KeyPath, model: type[Table]) -> Finding:
    """Say what became of a key that its table's model does not have. path: of the key."""
    table, key = path[:-1], str(path[-1])
    if instead := known_keys.FOREIGN.get((key_name(table), key)):
        return Finding(Code.FOREIGN_KEY, path, "is not a key of this table", instead, on_key=True)
    if key in known_keys.KEYS[str(table[0])]:
        return Finding(Code.UNSUPPORTED, path, NOT_HONOURED, "remove it", on_key=True)
    home = next((name for name, other in TABLES.items() if key in _names(other)), None)
    if home:
        hint = f"it belongs in [{key_name(home)}]"
        return Finding(Code.FOREIGN_KEY, path, "is not a key of this table", hint, on_key=True)
    return Finding(Code.UNKNOWN_KEY, path, "unknown key", _key_hint(key, model), on_key=True)


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


def _members(family: str, members: Mapping[str, Any]) -> Iterator[Finding]:
    for name, value in members.items():
        path = (family, name)
        if name in FAMILIES[family]:
            if not isinstance(value, dict):
                yield Finding(
                    Code.TYPE, path, "is a value, must be a table", f"write [{key_name(path)}]", on_key=True
                )
        elif not isinstance(value, dict):
            only = ", ".join(f"[{key_name((family, known))}]" for known in FAMILIES[family])
            yield Finding(
                Code.UNKNOWN_KEY, path, "is a key outside of any table", f"move it to {only}", on_key=True
            )
        elif family == "hypervisor" and name in known_keys.HYPERVISORS:
            yield Finding(Code.UNSUPPORTED, path, NOT_HONOURED, "remove the table", on_key=True)
        else:
            yield Finding(
                Code.UNKNOWN_TABLE, path, "unknown table", did_you_mean(name, FAMILIES[family]), on_key=True
            )


def _stray(name: str, value: Any) -> Finding:
    if isinstance(value, dict | list):
        hint = did_you_mean(name, [*FAMILIES, "runtime"])
        return Finding(Code.UNKNOWN_TABLE, (name,), "unknown table", hint, on_key=True)
    home = next((table for table, model in TABLES.items() if name in _names(model)), None)
    hint = f"move it to [{key_name(home)}]" if home else "remove it"
    return Finding(Code.UNKNOWN_KEY, (name,), "is a key outside of any table", hint, on_key=True)


def _key_hint(key: str, model: type[Table]) -> str:
    if best := closest(key, _names(model)):
        return f"did you mean {quoted(model.aliases.get(best, best))}?"
    for table, other in TABLES.items():
        if best := closest(key, _names(other)):
            return f"did you mean {quoted(best)} in [{key_name(table)}]?"
    return "remove it"


def _names(model: type[Table]) -> list[str]:
    return [*model.model_fields, *model.aliases]
