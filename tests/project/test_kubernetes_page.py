"""docs/kubernetes.md: each of upstream's files has a row, and what a row names is a test that exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import critest_report

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples/quickstart"))

from kubelet_topics import TOPICS  # noqa: E402

PAGE = (ROOT / "docs/kubernetes.md").read_text()
ROW = re.compile(r"^\| k8s-(?P<file>[-a-z0-9]+) \| (?P<word>[a-z ()]+) \| (?P<why>.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`(?P<path>tests/[^`:]+\.py)::(?P<test>\w+)`")
SEEN = "passes (seen on a kubelet)"
WORDS = {SEEN, "shown", "cannot", "not applicable", "not shown"}


def test_each_of_upstreams_files_has_one_row() -> None:
    files = [row["file"] for row in ROW.finditer(PAGE)]
    assert len(files) == len(set(files)) == 78
    assert files == sorted(files)
    assert {row["word"] for row in ROW.finditer(PAGE)} == WORDS


def test_what_is_shown_is_shown_by_a_test_that_exists() -> None:
    for row in ROW.finditer(PAGE):
        named = list(NAMED.finditer(row["why"]))
        if row["word"] not in ("shown", SEEN):
            assert not named, row["file"]
            continue
        assert row["word"] == SEEN or named or re.search("critest|^as |^nothing", row["why"]), row["file"]
        for test in named:
            assert re.search(rf"def {test['test']}\(", (ROOT / test["path"]).read_text()), test[0]
        if (same := re.match(r"as ([-a-z]+)", row["why"])) is not None:
            other = re.search(rf"(?m)^\| k8s-{same[1]} \| (shown|{re.escape(SEEN)}) \| ", PAGE)
            assert other, f"{row['file']} is as {same[1]}, which is not shown"


def test_what_is_seen_on_a_kubelet_is_what_its_topics_ask() -> None:
    seen = {row["file"] for row in ROW.finditer(PAGE) if row["word"] == SEEN}
    assert seen
    assert seen <= {file for one in TOPICS for file in one.files}


def test_the_list_of_what_critest_finds_has_reasons() -> None:
    listed = critest_report.read_list((ROOT / "docs/critest.md").read_text(), "1.6")
    assert listed
    assert all(len(reason) > 10 for reason in listed.values())
