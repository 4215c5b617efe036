"""What critest reports against what is listed: neither a new failure nor a mended one passes unnoticed."""

from __future__ import annotations

import json
from typing import Any

import pytest

import critest_report
from critest_report import Spec

PAGE = "| spec | why |\n|---|---|\n| `A known one` | it has no host |\n| not in quotes | x |\n"


def report(*specs: dict[str, Any]) -> str:
    return json.dumps([{"SpecReports": [{"LeafNodeType": "It", **spec} for spec in specs]}])


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
    text, found = critest_report.describe(specs, critest_report.read_list(PAGE))
    assert says in text
    assert found is as_listed
