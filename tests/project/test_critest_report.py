"""What critest reports against what is listed: neither a new failure nor a mended one passes unnoticed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import critest_report
from critest_report import Spec

PAGE = """\
| spec | why |
|---|---|
| `A known one` | it has no host |
| `An old one` | containerd 1.6: it says no |
| not in quotes | x |
"""


def report(*specs: dict[str, Any], reasons: list[str] | None = None) -> str:
    reports = [{"LeafNodeType": "It", **spec} for spec in specs]
    return json.dumps([{"SpecReports": reports, "SpecialSuiteFailureReasons": reasons}])


def spec(name: str, state: str) -> dict[str, Any]:
    return {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeText": name, "State": state}


def test_a_report_names_what_was_run() -> None:
    whole = report(
        {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeText": "passes", "State": "passed"},
        {"ContainerHierarchyTexts": None, "LeafNodeText": "left out", "State": "skipped"},
        {"LeafNodeText": "no seccomp", "State": "skipped", "Failure": {"Message": "not here"}}
        | {"ContainerHierarchyTexts": ["A"]},
        {
            "ContainerHierarchyTexts": ["A"],
            "LeafNodeText": "fails",
            "State": "failed",
            "Failure": {"Message": "Expected\n  <bool>: false"},
        },
        {
            "LeafNodeType": "BeforeSuite",
            "LeafNodeText": "",
            "State": "passed",
            "ContainerHierarchyTexts": None,
        },
    )
    assert critest_report.read(whole) == [
        Spec("A passes", "passed", ""),
        Spec("A no seccomp", "skipped", "not here"),
        Spec("A fails", "failed", "Expected <bool>: false"),
    ]


@pytest.mark.parametrize(
    ("specs", "says", "as_listed"),
    [
        ([Spec("x", "passed", "")], "1 passed, 0 failed (0 of them not listed), 0 skipped", True),
        ([Spec("A known one", "failed", "why")], "| A known one | it has no host | why |", True),
        ([Spec("A known one", "passed", "")], "listed, and passes: A known one", False),
        ([Spec("new", "failed", "a | b")], "| new | no | a / b |", False),
        ([Spec("new", "panicked", "")], "1 failed (1 of them not listed)", False),
        ([Spec("A known one", "skipped", "not here")], "0 failed (0 of them not listed), 1 skipped", True),
    ],
)
def test_only_what_is_listed_may_fail(specs: list[Spec], says: str, as_listed: bool) -> None:
    text, found = critest_report.describe(specs, critest_report.read_list(PAGE, "2.1"))
    assert says in text
    assert found is as_listed


def test_a_run_that_was_broken_off_is_gone_on_with() -> None:
    """What has passed is not run again, also where a name is the beginning of another."""
    first = report(
        *(spec("[a+b] runs", "passed"), spec("fails", "failed"), spec("was under way", "interrupted")),
        *(spec("[a+b] runs twice", "skipped"), spec("never began", "skipped")),
        reasons=["Interrupted by User"],
    )
    second = report(spec("[a+b] runs", "skipped"), spec("fails", "passed"), spec("never began", "passed"))
    assert critest_report.broken_off(first) == "Interrupted by User"
    assert critest_report.broken_off(second) == ""
    specs = critest_report.read(first)
    assert [found.name for found in specs] == ["A [a+b] runs", "A fails"]
    pattern = critest_report.left_out(specs)
    names = ("[a+b] runs", "[a+b] runs twice", "fails", "was under way")
    again = [name for name in names if not re.search(pattern, f"Suite [k8s.io] A {name}")]
    assert again == ["[a+b] runs twice", "fails", "was under way"]
    assert critest_report.left_out([]) == ""
    merged = critest_report.merge([specs, critest_report.read(second)])
    assert {found.name: found.state for found in merged} == {
        "A [a+b] runs": "passed",
        "A fails": "passed",
        "A never began": "passed",
    }


def test_a_reason_may_be_that_of_one_containerd() -> None:
    assert critest_report.read_list(PAGE, "2.1") == {"A known one": "it has no host"}
    assert critest_report.read_list(PAGE, "1.6") == {
        "A known one": "it has no host",
        "An old one": "containerd 1.6: it says no",
    }
