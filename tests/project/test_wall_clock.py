"""A host's clock may jump: it stamps what is told, and nothing is waited for or decided by it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "hypervisor", "agent", "configuration")
STAMPS = {"time", "time_ns", "now", "utcnow"}
"""Functions of `time` and `datetime` that read the wall clock."""


def decisions(tree: ast.AST) -> Iterator[int]:
    """Lines on which a reading of the wall clock is compared or counted with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.BinOp):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and _reads(inner.func):
                    yield inner.lineno


def _reads(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in STAMPS
        and isinstance(function.value, ast.Name)
        and function.value.id in ("time", "datetime")
    )


def test_no_deadline_is_of_a_clock_that_may_jump() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for line in decisions(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_a_deadline_of_such_a_clock_is_found() -> None:
    for text in ("end = time.time() + 5", "while time.time() < end: pass", "age = now - datetime.now()"):
        assert list(decisions(ast.parse(text))) == [1], text
    for text in ("end = time.monotonic() + 5", "stamp(time.time())"):
        assert list(decisions(ast.parse(text))) == [], text
