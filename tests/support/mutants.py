"""Mutants: a module's source with one small mistake in it, each that a person might make.

A comparison is turned or off by one, `and` is `or`, a condition is its contrary, a number is one more, a
statement is left out, a function returns nothing. What is said to people only, annotations and docstrings, is
left as it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Mult: ast.Add,
}
_LEFT_OUT = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete, ast.Continue, ast.Break)
_UNTOUCHED = {"annotation", "returns", "decorator_list", "bases", "keywords", "type_params"}
"""Fields that say something to readers and to tools; an argument's value is in `Call.keywords`, though."""


@dataclass(frozen=True)
class Mutant:
    """One mistake. where: the function that it is in. before, after: the code that it is in, and became."""

    line: int
    where: str
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """By which it is known whatever its line is."""
        return f"{self.where}: {self.before} -> {self.after}"


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source)
    for where, node, parent, field, index in list(_walk(tree, "module")):
        for changed in _mistakes(node, in_function=where != "module"):
            before, after = ast.unparse(node), ast.unparse(changed)
            _put(parent, field, index, changed)
            yield Mutant(getattr(node, "lineno", 0), where, before, after, ast.unparse(tree))
            _put(parent, field, index, node)


Place = tuple[str, ast.AST, ast.AST, str, int | None]


def _walk(node: ast.AST, where: str) -> Iterator[Place]:
    """All nodes that may have a mistake, with the place that each is in."""
    for field, value in ast.iter_fields(node):
        if field in _UNTOUCHED and not isinstance(node, ast.Call):
            continue
        children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if not isinstance(child, ast.AST) or _is_said(child):
                continue
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            inner = child.name if named else where  # type: ignore[attr-defined]
            yield where, child, node, field, index
            yield from _walk(child, inner)


def _is_said(node: ast.AST) -> bool:
    """Whether it is for people: a docstring, an import for the type checker, a name's list of others."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__slots__", "TYPE_CHECKING")
    )


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _mistakes(node: ast.AST, *, in_function: bool) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in _COMPARISONS:
            yield ast.Compare(left, [_COMPARISONS[type(operator)]()], [right])
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
            yield ast.BinOp(left, _OPERATORS[type(operator)](), right)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Return(ast.expr() as value) if ast.unparse(value) != "None":
            yield ast.Return()
        case ast.If(test, body, orelse) | ast.While(test, body, orelse) if isinstance(
            test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr
        ):
            yield type(node)(ast.UnaryOp(ast.Not(), test), body, orelse)
    if in_function and isinstance(node, _LEFT_OUT):
        yield ast.Pass()
