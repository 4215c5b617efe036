"""What a rule is: a check of the tables that have the keys which it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_configuration.diagnostics import Finding, KeyPath

if TYPE_CHECKING:
    from kata_configuration.models import Table

# From a table to findings whose paths begin below the table.
Check = Callable[[Any], Iterator[Finding]]


class Rule(NamedTuple):
    """A check of the tables of a family that have all of these keys."""

    family: str
    keys: tuple[str, ...]
    check: Check

    def concerns(self, table: Table, path: KeyPath, faulty: frozenset[str]) -> bool:
        """Whether a table at a path has the keys, and has them right."""
        has_all = all(table.has_key(key) for key in self.keys)
        return self.family == path[0] and has_all and faulty.isdisjoint(self.keys)
