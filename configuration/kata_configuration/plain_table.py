"""A table as its answers alone, for whom no model need be imported.

A model's properties depend on its keys and on nothing else, so that their values can be kept beside these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

T = TypeVar("T")


class PlainTable:
    """A table's keys with their values, and what is asked of the table beyond them. Nothing can be set."""

    __slots__ = ("_answers", "_keys")

    def __init__(self, keys: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
        set_once = object.__setattr__
        set_once(self, "_keys", dict(keys))
        set_once(self, "_answers", dict(answers))

    def __getattr__(self, name: str) -> Any:
        for values in (self._keys, self._answers):
            if name in values:
                return values[name]
        raise AttributeError(f"the table has neither a key nor an answer named {name}", name=name, obj=self)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a table cannot change once loaded", name=name, obj=self)

    def has_key(self, name: str) -> bool:
        """Whether the table has a key of that name."""
        return name in self._keys


class _Overridden:
    """See `overridden`."""

    def __init__(self, table: object, answers: Mapping[str, Any]) -> None:
        self._table = table
        self.__dict__.update(answers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


def overridden(table: T, **answers: object) -> T:
    """A table that answers otherwise for these keys and properties, and for all others as the one given.

    What is derived from a key is not derived anew: give it too.
    """
    for name in answers:
        getattr(table, name)
    return cast("T", _Overridden(table, answers))
