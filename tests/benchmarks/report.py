"""The benchmark of machines as a table in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contenders import CONTENDERS, OURS


@dataclass(frozen=True, slots=True)
class Row:
    """A thing measured. smaller: whether less is better. budget: how many times as good as QEMU's microvm
    ours has to be; None where nothing is promised."""

    name: str
    unit: str
    smaller: bool = False
    budget: float | None = 1.0


BOOT = Row("boot, to the agent's first answer", "s", smaller=True)
RESTORE = "restore from a template, to the agent's first answer"
RESTORE_BUDGET = 0.2
"""Of the time of a boot."""
BASELINE = "microvm"


def ratios(row: Row, numbers: Mapping[str, Sequence[float]], other: str) -> list[float]:
    """Round by round, how many times as good ours is: above 1 it is better."""
    pairs = zip(numbers[OURS], numbers[other], strict=True)
    return [theirs / ours if row.smaller else ours / theirs for ours, theirs in pairs]


def markdown(
    host: str,
    rows: Sequence[Row],
    results: Mapping[str, Mapping[str, Sequence[float]]],
    counted: Sequence[Mapping[str, float]],
) -> str:
    """The table. counted: what our machine has counted at each boot."""
    others = [name for name in CONTENDERS if name != OURS]
    rounds = len(counted)
    lines = [
        f"Medians of {rounds} rounds, in turn, on {host}. A ratio says how many times as good (as fast, as "
        "small) the in-process machine is, with the least and the most of all rounds.",
        "",
        f"| what | {OURS} | {' | '.join(f'QEMU {name}' for name in others)} | "
        f"{' | '.join(f'ratio to {name}' for name in others)} | budget |",
        "|---" * (3 + 2 * len(others)) + "|",
    ]
    for row in rows:
        numbers = results[row.name]
        cells = [f"{number(statistics.median(numbers[name]))} {row.unit}".strip() for name in CONTENDERS]
        cells += [_spread(ratios(row, numbers, name)) for name in others]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {_budget(row, numbers)} |")
    return "\n".join([*lines, "", _restore(results), "", _exits(counted)])


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _budget(row: Row, numbers: Mapping[str, Sequence[float]]) -> str:
    if row.budget is None:
        return "none"
    ratio = statistics.median(ratios(row, numbers, BASELINE))
    if ratio >= row.budget:
        return f"{row.budget:.1f}, kept"
    return f"{row.budget:.1f}, **missed** by {1 - ratio / row.budget:.0%}"


def _restore(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Restore against cold boot, in a sentence."""
    seconds, boots = results.get(RESTORE, {}).get(OURS), results[BOOT.name][OURS]
    if not seconds:
        return f"{RESTORE.capitalize()}: the machine cannot be saved."
    parts = [restored / booted for restored, booted in zip(seconds, boots, strict=True)]
    result = "kept" if statistics.median(parts) <= RESTORE_BUDGET else "**missed**"
    return (
        f"The in-process machine, {RESTORE}: {number(statistics.median(seconds))} s, "
        f"{_spread(parts)} of its boot; budget {RESTORE_BUDGET}, {result}."
    )


def _exits(counted: Sequence[Mapping[str, float]]) -> str:
    """What reached Python during the boots, in a sentence."""
    kinds = sorted({kind for one in counted for kind in one} - {"python_seconds"})
    parts = [f"{statistics.median(one.get(kind, 0) for one in counted):.0f} {kind}" for kind in kinds]
    seconds = statistics.median(one["python_seconds"] for one in counted)
    return (
        f"Exits that reached Python in a boot: {', '.join(parts)}; {seconds * 1000:.0f} ms in their handlers."
    )
