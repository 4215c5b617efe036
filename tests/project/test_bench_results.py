"""The table of the benchmarks: what it says of each row, and what counts as worse than a baseline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import results  # noqa: E402
from results import Result  # noqa: E402

BASE = Result("start", (1.0, 1.25, 1.5))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "results.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (BASE, "-"),
        (BASE._replace(budget=1.25), "kept"),
        (BASE._replace(budget=1.1), "MISSED"),
        (BASE._replace(budget=1.1, more=True), "kept"),
        (BASE._replace(budget=1.3, more=True), "MISSED"),
    ],
)
def test_a_budget_is_kept_by_the_median(row: Result, verdict: str) -> None:
    assert row.verdict == verdict


@pytest.mark.parametrize(
    ("found", "more", "worse"),
    [
        ((1.75, 1.75, 1.75), False, False),
        ((1.76, 1.76, 1.76), False, True),
        ((0.1, 0.1, 0.1), False, False),
        ((0.75, 0.75, 0.75), True, False),
        ((0.74, 0.74, 0.74), True, True),
        ((9.0, 9.0, 9.0), True, False),
    ],
)
def test_worse_is_what_differs_by_more_than_the_spread(
    found: tuple[float, ...], more: bool, worse: bool
) -> None:
    base = BASE._replace(more=more)
    assert bool(results.compare([base._replace(values=found)], [base])) is worse


def test_what_was_not_measured_again_is_a_fault_and_what_is_no_ratio_is_not_compared() -> None:
    assert results.compare([], [BASE, Result("seal", (1.0,), unit="ms")]) == ["start: was not measured"]


def test_rows_are_recorded_shown_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, kept = tmp_path / "results.jsonl", tmp_path / "kept.json"
    results.record("nowhere", [1.0])
    monkeypatch.setenv(results.VARIABLE, str(file))
    results.record("start", [9.0])
    results.record("start", [1.0, 1.25, 1.5], budget=1.1)
    results.record("seal", [15.0], unit="ms of CPU", budget=20)
    assert results.read(file) == [
        BASE._replace(budget=1.1),
        Result("seal", (15.0,), unit="ms of CPU", budget=20),
    ]
    assert run("show", file).stdout.splitlines() == [
        "what   median  least to most  rounds  unit       budget  verdict",
        "start  1.25    1 to 1.5       3       ratio      <= 1.1  MISSED",
        "seal   15      15 to 15       1       ms of CPU  <= 20   kept",
    ]
    kept.write_text(run("show", "--json", file).stdout)
    assert json.loads(kept.read_text())[0]["median"] == 1.25
    assert run("check", file, kept).returncode == 0
    results.record("start", [2.0])
    worse = run("check", file, kept)
    assert worse.returncode == 1
    assert worse.stdout.startswith("start: 2, and 1.25 in the baseline: worse by 0.75, which is more than")
