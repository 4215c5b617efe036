"""What a finding needs to know of the whole tree: what it selects, and where a misplaced key belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kata_configuration.diagnostics import KeyPath
from kata_configuration.models import TABLES, Runtime, Table, own_path


class Context:
    """A tree, and the hypervisor that it selects.

    owner: returns the number of the file that a path is from.
    """

    def __init__(self, tree: Mapping[str, Any], owner: Callable[[KeyPath], int] = lambda _: 0) -> None:
        self.tree = tree
        self._owner = owner
        self.selected = selected_hypervisor(tree)

    @property
    def table(self) -> KeyPath:
        """The path of the selected hypervisor's table, as the file writes it; () where it has none."""
        tables = self.tree.get("hypervisor")
        for name in tables if isinstance(tables, Mapping) else ():
            if own_path(("hypervisor", name))[1] == self.selected:
                return ("hypervisor", name)
        return ()

    @property
    def model(self) -> type[Table] | None:
        """The model of the selected hypervisor's table, or None where no known one is selected."""
        return TABLES.get(("hypervisor", self.selected or ""))

    def homes(self, key: str) -> list[KeyPath]:
        """Return the tables with a key, as the file writes them; of hypervisors the selected one only."""
        found: list[KeyPath] = []
        for path, model in TABLES.items():
            if path[0] == "hypervisor" and path[1] != self.selected:
                continue
            if key in spellings(model):
                found.append(self.table or path if path[0] == "hypervisor" else path)
        return found

    def holds(self, table: KeyPath, key: str, beside: KeyPath) -> bool:
        """Whether a table has a key, by any of its names, in the file where the statement `beside` stands."""
        raw, model = lookup(self.tree, table), TABLES.get(own_path(table))
        if not isinstance(raw, Mapping) or model is None:
            return False
        own = model.aliases.get(key, key)
        names = (own, *(alias for alias, to in model.aliases.items() if to == own))
        return any(name in raw and self._owner((*table, name)) == self._owner(beside) for name in names)


def spellings(model: type[Table]) -> list[str]:
    """Return every name that a table's keys have."""
    return [*model.model_fields, *model.aliases]


def selected_hypervisor(tree: Mapping[str, Any]) -> str | None:
    """Return the hypervisor that a tree selects, by its table's own name; None where its name is no text."""
    name = lookup(tree, ("runtime", "hypervisor_name"))
    if name is None:
        name = Runtime.model_fields["hypervisor_name"].default
    return own_path(("hypervisor", name))[1] if isinstance(name, str) else None


def lookup(tree: Mapping[str, Any], path: KeyPath) -> Any:
    """Return what stands at a path, None where nothing does, or the value that is in the way."""
    node: Any = tree
    for part in path:
        if not isinstance(node, Mapping):
            return node
        node = node.get(part)
    return node
