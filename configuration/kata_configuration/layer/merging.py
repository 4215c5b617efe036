"""One tree out of several: a base file, its drop-ins, and annotations; each value keeps its owner.

Tables are merged; everything else, arrays too, is replaced. A key that is set in another spelling than
before replaces the value in the first spelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kata_configuration.diagnostics import KeyPath
from kata_configuration.models import OTHER_NAMES, TABLES, own_path

Tree = dict[str, Any]


class Replaced(NamedTuple):
    """An array that a later tree has replaced. owner, by: numbers of trees; lost: elements not repeated."""

    path: KeyPath
    owner: int
    by: int
    lost: tuple[Any, ...]


class Overridden(NamedTuple):
    """A value that a later tree has replaced by another one. owner, by: numbers of trees."""

    path: KeyPath
    owner: int
    by: int


class Merged:
    """The merged tree, which tree each value is from, the arrays that lost elements, and values replaced."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.replaced: list[Replaced] = []
        self.overridden: list[Overridden] = []
        self._owners: dict[KeyPath, int] = {}

    def owner(self, path: KeyPath) -> int:
        """Return the number of the tree that set what stands at a path, or at the nearest above it."""
        for depth in range(len(path), 0, -1):
            if (owner := self._owners.get(path[:depth])) is not None:
                return owner
        return 0

    def overlay(self, tree: Mapping[str, Any], number: int) -> None:
        """Merge one more tree into this one."""
        self._overlay(self.tree, tree, (), number)

    def _overlay(self, base: Tree, over: Mapping[str, Any], path: KeyPath, number: int) -> None:
        for key, value in over.items():
            here = (*path, key)
            for twin in spellings(path, key):
                if twin != key and twin in base and twin not in over:
                    self._rename(base, path, twin, key)
            old = base.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                self._overlay(old, value, here, number)
                continue
            if isinstance(old, list) and isinstance(value, list):
                lost = tuple(item for item in old if item not in value)
                if lost:
                    self.replaced.append(Replaced(here, self.owner(here), number, lost))
            elif key in base and old != value:
                self.overridden.append(Overridden(here, self.owner(here), number))
            if isinstance(old, dict):
                self._forget(here)
            self._owners[here] = number
            base[key] = _copy(value)

    def _rename(self, base: Tree, path: KeyPath, old: str, new: str) -> None:
        """Let what was set in one spelling stand under the other, where the later tree finds it."""
        base[new] = base.pop(old)
        before, after = (*path, old), (*path, new)
        moved = {name: owner for name, owner in self._owners.items() if name[: len(before)] == before}
        self._forget(before)
        self._owners |= {(*after, *name[len(before) :]): owner for name, owner in moved.items()}

    def _forget(self, path: KeyPath) -> None:
        for name in [name for name in self._owners if name[: len(path)] == path]:
            del self._owners[name]


def merge(trees: Sequence[Tree]) -> Merged:
    """Merge trees, the later over the earlier; they stay as they are."""
    merged = Merged(_copy(trees[0]))
    for number, tree in enumerate(trees[1:], 1):
        merged.overlay(tree, number)
    return merged


def spellings(table: KeyPath, key: str) -> tuple[str, ...]:
    """Return every spelling of a key or table below a path, its own first: clh, then cloud-hypervisor."""
    if table == ("hypervisor",):
        own = OTHER_NAMES.get(key, key)
        return (own, *(other for other, name in OTHER_NAMES.items() if name == own))
    model = TABLES.get(own_path(table))
    if model is None:
        return (key,)
    own = model.aliases.get(key, key)
    return (own, *(alias for alias, name in model.aliases.items() if name == own))


def _copy(value: Any) -> Any:
    """Copy the tables of a value; all else is never changed."""
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value
