"""docs/findings.md and the tests name the same findings."""

from __future__ import annotations

import ast
import re

from import_graph import ROOT

PAGE = ROOT / "docs" / "findings.md"
TESTS = ROOT / "tests" / "attacks" / "test_public_findings.py"
OWN_TESTS = ROOT / "tests" / "attacks" / "test_reported_faults.py"
NUMBER = re.compile(r"cve_\d{4}_\d+|ghsa(?:_[0-9a-z]{4}){3}|kata_pr_\d+|kata_4_3_0")


def rows() -> dict[str, set[str]]:
    """The tests in the first table, by the numbers that their row is about."""
    table = PAGE.read_text(encoding="utf-8").partition("## Findings that cannot")[0]
    found: dict[str, set[str]] = {}
    for line in filter(lambda line: line.startswith("|"), table.splitlines()):
        first, *_, last = line.strip("|").split("|")
        number = re.sub(r"[-. ]", "_", first.strip().lower())
        if NUMBER.fullmatch(number):
            found.setdefault(number, set()).update(re.findall(r"`(test_\w+)`", last))
    return found


def numbered_tests() -> set[str]:
    """The tests that are named by a finding."""
    tree = ast.parse(TESTS.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if NUMBER.match(name.removeprefix("test_"))}


def test_each_row_has_its_test_and_each_test_its_row() -> None:
    assert len(rows()) >= 20
    for number, tests in rows().items():
        assert tests, f"{number} has no test"
        assert all(number in test for test in tests), number
    assert set().union(*rows().values()) == numbered_tests()


def test_each_number_of_a_test_is_a_row() -> None:
    assert {number for test in numbered_tests() for number in NUMBER.findall(test)} == set(rows())


def test_each_fault_of_this_runtime_is_a_row_and_is_tried() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Ten faults of this runtime")[2]
    numbered = re.findall(r"^\| (\d+ [^|]+?) \|", table, re.MULTILINE)
    tree = ast.parse(OWN_TESTS.read_text(encoding="utf-8"))
    (tried,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ELSEWHERE" and node.value
    ]
    assert numbered == list(ast.literal_eval(tried))
    assert [int(name.split()[0]) for name in numbered] == list(range(1, 11))


def test_each_fault_of_networks_has_tests_that_are_there() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Faults that pods' networks had")[2]
    table = table.partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) .* \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 30))
    places = {path.name: path for path in (ROOT / "tests").glob("*/test_*.py")}
    for number, tests in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert named, f"{number} has no test"
        for file, name in named:
            tree = ast.parse(places[file].read_text(encoding="utf-8"))
            assert name in defined(tree), f"{number}: {file} has no {name}"


def defined(tree: ast.AST) -> set[str]:
    """The names of all functions of a module, those of its classes too."""
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
