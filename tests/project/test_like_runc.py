"""Suites that others wrote: what they print is read, and no difference to runc passes without a reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import like_runc_report
from like_runc_report import ABSENT, Comparison, Difference
from like_runc_suites import NOT_FINISHED, PRELUDE, SUITES, Suite, read_lines, read_tap, read_unittest

ROOT = Path(__file__).resolve().parents[2]

JUNIT = """\
@@ test_os 0
<testsuites><testsuite><testcase name="test.test_os.A.test_a" /><testcase name="test.test_os.A.test_b">\
<skipped>why</skipped></testcase><testcase name="test.test_os.A.test_c"><failure/></testcase></testsuite>\
</testsuites>
@@ test_io 137
"""
TAP = """\
@@ mkdir/00.t
1..3
ok 1
not ok 2 - expected ENOENT
not ok 3 # TODO not yet
@@ open/00.t
ok 1
"""


def test_what_suites_print_is_read() -> None:
    assert read_lines("@@ fork passed\n    detail\n@@ open01 status 0 passed 2\n@@ odd\n") == {
        "fork": "passed",
        "open01": "status 0 passed 2",
    }
    assert read_unittest(JUNIT) == {
        "test.test_os.A.test_a": "passed",
        "test.test_os.A.test_b": "skipped",
        "test.test_os.A.test_c": "failure",
        "test_io": f"{NOT_FINISHED}: status 137",
    }
    assert read_tap(TAP) == {
        "mkdir/00.t:1": "passed",
        "mkdir/00.t:2": "failure",
        "mkdir/00.t:3": "failure, todo",
        "open/00.t:1": "passed",
    }


def test_tests_are_compared_one_by_one() -> None:
    runc = {"a": "passed", "b": "passed", "c": "skipped", "d": "status 0 passed 2"}
    found = like_runc_report.compare("s", "root", runc, runc | {"b": "failure", "e": "passed"})
    differences = (Difference("s root b", "passed", "failure"), Difference("s root e", ABSENT, "passed"))
    assert found == Comparison("s", "root", 3, 2, differences)


def test_a_difference_needs_a_reason() -> None:
    found = [Comparison("s", "root", 3, 2, (Difference("s root b1", "passed", "failure"),))]
    page = (
        "| test | runc | here | why |\n|---|---|---|---|\n| `s * b?` | passed | failure | an old kernel |\n"
    )
    text, explained = like_runc_report.describe(found, like_runc_report.read_list(page))
    assert explained
    assert "| `s root b1` | passed | failure | an old kernel |" in text
    text, explained = like_runc_report.describe(found, {"s volume *": "another place"})
    assert not explained
    assert "NOT EXPLAINED" in text


def test_the_page_has_a_reason_for_each_row_and_names_suites_that_there_are() -> None:
    for pattern, why in like_runc_report.read_list((ROOT / "docs/like-runc.md").read_text()).items():
        assert why.strip()
        assert pattern.split()[0] in {*SUITES, "*"}, pattern


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_scripts_are_bash(suite: Suite) -> None:
    script = PRELUDE + suite.script
    done = subprocess.run(
        ["bash", "-O", "extglob", "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_suite_without_its_sources_says_what_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KATA_TEST_LTP", raising=False)
    assert SUITES["ltp"].missing() == ["KATA_TEST_LTP"]
    monkeypatch.setenv("KATA_TEST_LTP", "/")
    assert SUITES["ltp"].missing() == []
