"""Suites that others wrote: what they print is read, and no difference to runc passes without a reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import like_runc_report
from like_runc_report import ABSENT, Comparison, Difference
from like_runc_sources import source_entries
from like_runc_suites import (
    NOT_FINISHED,
    PRELUDE,
    SUITES,
    Suite,
    read_lines,
    read_postgresql,
    read_redis,
    read_said,
    read_tap,
    read_unittest,
)

ROOT = Path(__file__).resolve().parents[2]

JUNIT = """\
@@ test_os 0
<testsuites><testsuite><testcase name="test.test_os.A.test_a" /><testcase name="test.test_os.A.test_b">\
<skipped>why</skipped></testcase><testcase name="test.test_os.A.test_c"><failure/></testcase></testsuite>\
</testsuites>
@@ test_io 137
"""
REDIS = """\
@@ unit/type/incr
[ok]: INCR against non existing key (1 ms)
[err]: INCR fails in tests/unit/type/incr.tcl
Expected '1' to be equal to '2'
[ok]: INCR against non existing key (12 ms)
[skip]: slow one
@@ unit/type/incr status 1
"""
PG_REGRESS = """\
============== running regression test queries ==============
test test_setup                   ... ok           38 ms
parallel group (2 tests):  char boolean
     boolean                      ... FAILED       20 ms
     char                         ... ok           10 ms
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


def test_what_redis_and_postgresql_print_is_read() -> None:
    unit = "unit/type/incr"
    assert read_redis(REDIS) == {
        f"{unit}: INCR against non existing key": "passed",
        f"{unit}: INCR fails": "err",
        f"{unit}: INCR against non existing key #2": "passed",
        f"{unit}: slow one": "skip",
        unit: "status 1",
    }
    found = {"test_setup": "passed", "boolean": "FAILED", "char": "passed"}
    assert read_postgresql(PG_REGRESS) == found


def test_what_comes_in_no_order_is_read_by_its_words() -> None:
    lines = (
        "ok 1 # SKIP hostname not set\nnot ok 2 - has a\n  ---\nok 3 - has b\nok 4 - has b\n@@ end status 0\n"
    )
    assert read_said(lines) == {
        "hostname not set": "passed",
        "has a": "failure",
        "has b": "passed",
        "has b #2": "passed",
        "end": "status 0",
    }


def test_sources_of_packages_take_the_place_of_packages() -> None:
    deb822 = "Types: deb\nURIs: http://mirror\nSuites: bookworm\n"
    assert source_entries(deb822, deb822=True) == deb822.replace("deb\n", "deb-src\n", 1)
    lines = "# deb none\ndeb [signed-by=/k] http://mirror bookworm main\n"
    assert source_entries(lines, deb822=False) == lines.replace("\ndeb ", "\ndeb-src ")


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
    script = PRELUDE + suite.script + suite.build
    done = subprocess.run(
        ["bash", "-O", "extglob", "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_suite_without_its_sources_says_what_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KATA_TEST_LTP", raising=False)
    assert SUITES["ltp"].missing() == ["KATA_TEST_LTP"]
    monkeypatch.setenv("KATA_TEST_LTP", "/")
    assert SUITES["ltp"].missing() == []
