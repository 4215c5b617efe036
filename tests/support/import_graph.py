"""What imports what among this project's packages, read from their sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "kata_runtime": ROOT / "runtime",
    "kata_hypervisor": ROOT / "hypervisor",
    "kata_configuration": ROOT / "configuration",
    "kata_agent": ROOT / "agent",
}

_NAME = re.compile(r"(kata_\w+(?:\.\w+)+)(?::\w+)?")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the rooms by its dotted name; a package is its __init__."""
    found = {}
    for package, folder in ROOMS.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports() -> frozenset[tuple[str, str]]:
    """Pairs of an importing module and an imported one, wherever the import statement stands."""
    return frozenset((name, target) for name, tree in modules().items() for target in _imports_of(tree))


@cache
def names() -> frozenset[tuple[str, str]]:
    """Pairs of a module and another that it names in a string, "package.module" or "package.module:Name"."""
    return frozenset((name, target) for name, tree in modules().items() for target in _names_of(tree))


def _imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules() else node.module


def _names_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = _NAME.fullmatch(node.value)
            if found is not None and found[1] in modules():
                yield found[1]
