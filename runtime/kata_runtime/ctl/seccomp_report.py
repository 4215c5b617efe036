"""`kata-ctl seccomp report`: one HTML page, with nothing to load from elsewhere, on what is let through."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from kata_hypervisor.seccomp.policy import PROCESS, load_policy
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import Survey
from kata_runtime.ctl.seccomp import GOOD, reporting
from kata_runtime.ctl.seccomp_chart import FONT_SIZE, SMALL_FONT_SIZE, bars, cells
from kata_runtime.ctl.seccomp_policy import CHILD_ROWS, ScoreRow, measure, score_rows
from kata_runtime.version import VERSION

_STYLE = """\
:root { --paper: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --closed: #e6eaef;
  --open: #8b97a6; --conditional: #c6ced8; --ours: #1f6fd1; --ours-soft: #9cc3f0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181e; --ink: #e6eaef; --soft: #9aa6b4;
  --line: #2b333d; --closed: #262d36;
  --open: #6b7786; --conditional: #414b57; --ours: #5aa2f2; --ours-soft: #2d5584; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1000px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p { color: var(--soft); max-width: 46rem; } b { color: var(--ink); }
svg { width: 100%; height: auto; overflow: visible; font-family: system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .axis, svg .head { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .open { fill: var(--open); } svg .conditional { fill: var(--conditional); }
svg .closed { fill: var(--closed); } svg text.ours { font-weight: 650; }
svg rect.ours.open { fill: var(--ours); } svg rect.ours.conditional { fill: var(--ours-soft); }
.map .open { fill: var(--ours); } .map .conditional { fill: var(--ours-soft); }
.key { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin: 0 0.3em 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.15rem 0.8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
code { font-size: 0.9em; }
"""
_FONTS = f"""\
svg {{ font-size: {FONT_SIZE}px; }} svg .axis, svg .head {{ font-size: {SMALL_FONT_SIZE}px; }}
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "report",
        help="an HTML page: what the sealed runtime can call, beside other VMMs",
        description="Write one HTML page, which loads nothing from elsewhere: the calls that each driver's "
        "threads are let through, beside the published figures of other VMMs, and call by call.",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", default=Path("seccomp.html"))
    parser.set_defaults(run=reporting(run))


def run(arguments: argparse.Namespace) -> int:
    """Write the page and return the exit status."""
    policy = load_policy()
    arguments.output.write_text(page(measure(policy), policy.source), encoding="utf-8")
    print(f"wrote {arguments.output}")
    return GOOD


def page(measured: Mapping[tuple[str, str], Survey], source: str) -> str:
    """The page. measured: what each driver's kinds of threads let through; source: the policy's name."""
    rows = score_rows(measured)
    maps = [part for (driver, thread), survey in measured.items() for part in _map(driver, thread, survey)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>What the sealed runtime can call</title>",
            f"<style>\n{_STYLE}{_FONTS}</style></head><body>",
            "<h1>What the sealed runtime can call</h1>",
            f"<p>Policy <code>{escape(source)}</code>, kata-ctl {escape(VERSION)}. {_finding(rows)}</p>",
            f"<p>{_key('ours', 'this runtime, whatever the arguments')}"
            f"{_key('ours-soft', 'held to conditions')}{_key('open', 'others')}"
            f"{_key('conditional', 'held to conditions')}</p>",
            bars(rows),
            "<p>The others as published, x86_64, August 2026; a dash is not published. Score: every call "
            "weighs 1 to 20 by what it leads to, and less where its arguments are held to conditions.</p>",
            *maps,
            "<h2>The figures</h2>",
            _table(rows),
            "</body></html>",
            "",
        ]
    )


def _finding(rows: Sequence[ScoreRow]) -> str:
    """The page's message in one sentence."""
    shims = (
        row for row in rows if row.ours and row.unit == "process" and row.name not in CHILD_ROWS.values()
    )
    ours = max(shims, key=lambda row: row.score)
    worse = sum(1 for row in rows if not row.ours and row.unit == "process" and row.score > ours.score)
    others = sum(1 for row in rows if not row.ours and row.unit == "process")
    return (
        f"The runtime's own process is let through <b>{ours.allowed} system calls, score {ours.score:g}</b>: "
        f"less than {worse} of the {others} processes that others publish."
    )


def _key(color: str, text: str) -> str:
    return f'<span class="key" style="background: var(--{color})"></span>{escape(text)}'


def _map(driver: str, thread: str, survey: Survey) -> Iterable[str]:
    surface = surface_of(survey)
    whose = "the whole process" if thread == PROCESS else "vCPU threads"
    title = (
        f"{driver}, {whose}: {surface.allowed} of {len(survey.calls)} system calls, score {surface.score:g}"
    )
    yield f"<h2>{escape(title)}</h2>"
    keys = {"ours": "let through", "ours-soft": "under conditions", "closed": "refused"}
    yield f"<p>{''.join(_key(color, meaning) for color, meaning in keys.items())}</p>"
    yield f'<div class="map">{cells(survey, title)}</div>'
    yield f"<p><b>Let through:</b> {_list(survey.named('open'))}.</p>"
    yield f"<p><b>Under conditions:</b> {_list(survey.named('conditional'))}.</p>"


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"<code>{escape(name)}</code>" for name in names) or "none"


def _table(rows: Sequence[ScoreRow]) -> str:
    heads = ("VMM", "filter on", "calls", "unfiltered", "escape", "score")
    lines = ["<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for row in rows:
        figures = [row.allowed, row.unfiltered, row.escape, f"{row.score:g}"]
        shown = ["-" if figure is None else str(figure) for figure in figures]
        name = f"<b>{escape(row.name)}</b>" if row.ours else escape(row.name)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (name, row.unit, *shown)) + "</tr>")
    return "\n".join([*lines, "</table>"])
