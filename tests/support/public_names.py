"""What the rooms promise each other, as lines: names, parameters, fields and values, read from the sources.

python tests/support/public_names.py > tests/project/public_names.txt
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import import_graph

MODULES = ("kata_hypervisor.contract", "kata_hypervisor.host", "kata_agent.client")


def describe(module: str) -> list[str]:
    """Return a line for each public name of a module and of its public classes, in the module's order."""
    return [f"{module}.{line}" for line in _describe(import_graph.modules()[module].body)]


def _describe(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef) and _is_public(node.name):
            bases = ", ".join(map(ast.unparse, node.bases))
            yield f"{node.name}({bases})" if bases else node.name
            yield from (f"{node.name}.{line}" for line in _describe(node.body))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            yield _describe_function(node)
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and _is_public(node.target.id)
        ):
            yield ast.unparse(node)
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            yield from (f"{name} = {ast.unparse(node.value)}" for name in names if _is_public(name))


def _describe_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    kinds = {ast.unparse(decorator) for decorator in node.decorator_list} - {"abc.abstractmethod"}
    prefix = "".join(f"@{kind} " for kind in sorted(kinds))
    keyword = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{prefix}{keyword}{node.name}({ast.unparse(node.args)}){returns}"


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


if __name__ == "__main__":
    for each in MODULES:
        print(*describe(each), sep="\n")
