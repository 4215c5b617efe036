"""What the benchmarks have found, as one table: ratio, spread, budget, verdict; and what became worse.

A benchmark calls `record`; `make bench` names the file for it in KATA_BENCH_RESULTS, and shows it at the end.

    results.py show FILE             the table; --json for the same as JSON
    results.py check FILE BASELINE   fail where a ratio is worse than the baseline's by more than its spread

Ratios only are compared: they are of two things that were measured in turn, in one run. What has another unit
is judged by its budget alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "KATA_BENCH_RESULTS"
RATIO = "ratio"


class Result(NamedTuple):
    """A row. values: of each round. unit: "ratio", or that of the values. more: whether more is better."""

    name: str
    values: tuple[float, ...]
    unit: str = RATIO
    budget: float | None = None
    more: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """From the least to the most."""
        return max(self.values) - min(self.values)

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return "-"
        kept = self.median >= self.budget if self.more else self.median <= self.budget
        return "kept" if kept else "MISSED"

    def fault(self, found: Result | None) -> str:
        """What is worse in another measurement than in this, the baseline; empty where nothing is."""
        if found is None:
            return f"{self.name}: was not measured"
        loss = self.median - found.median if self.more else found.median - self.median
        if loss <= self.spread:
            return ""
        return (
            f"{self.name}: {found.median:.3g}, and {self.median:.3g} in the baseline: worse by {loss:.2g}, "
            f"which is more than the baseline's spread of {self.spread:.2g}"
        )


def record(
    name: str,
    values: Iterable[float],
    *,
    unit: str = RATIO,
    budget: float | None = None,
    more: bool = False,
) -> None:
    """Add a row to the file that the environment names; nothing where it names none."""
    if path := os.environ.get(VARIABLE):
        row = Result(name, tuple(values), unit, budget, more)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row._asdict()) + "\n")


def read(path: Path) -> list[Result]:
    """The rows of a file that `record` or `show --json` has written; of one name the last."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    found = [Result(**{name: row[name] for name in Result._fields}) for row in rows]
    named = {row.name: row._replace(values=tuple(row.values)) for row in found}
    return list(named.values())


def plain(rows: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows for JSON, with what the table shows."""
    return [
        {**row._asdict(), "median": row.median, "spread": row.spread, "verdict": row.verdict} for row in rows
    ]


def table(rows: Sequence[Result]) -> str:
    """The rows as text, in columns."""
    head = ("what", "median", "least to most", "rounds", "unit", "budget", "verdict")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cells(row: Result) -> tuple[str, ...]:
    relation = ">= " if row.more else "<= "
    budget = f"{relation}{row.budget:.3g}" if row.budget is not None else "-"
    reach = f"{min(row.values):.3g} to {max(row.values):.3g}"
    return row.name, f"{row.median:.3g}", reach, str(len(row.values)), row.unit, budget, row.verdict


def compare(found: Sequence[Result], baseline: Sequence[Result]) -> list[str]:
    """What is worse than in the baseline, a sentence each."""
    named = {row.name: row for row in found}
    return [fault for row in baseline if row.unit == RATIO and (fault := row.fault(named.get(row.name)))]


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    show, check = actions.add_parser("show"), actions.add_parser("check")
    for one in (show, check):
        one.add_argument("file", type=Path)
    show.add_argument("--json", action="store_true")
    check.add_argument("baseline", type=Path)
    arguments = parser.parse_args()
    rows = read(arguments.file)
    if arguments.action == "show":
        print(json.dumps(plain(rows), indent=1) if arguments.json else table(rows))
        return 0
    faults = compare(rows, read(arguments.baseline))
    print("\n".join(faults) if faults else "no ratio is worse than the baseline's by more than its spread")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
