"""`kata-ctl seccomp show` and `score`: the policy as people read it, and what it is worth."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from kata_hypervisor.driver_policy import CHILDREN, FEATURES, NAMES, policy_of, rules_of, threads_of
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.policy import PROCESS, THREADS, VCPU, Policy, load_policy
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.score import PUBLISHED, Surface, surface_of
from kata_hypervisor.seccomp.survey import Survey, survey
from kata_runtime.ctl.seccomp import FAULTS, GOOD, reporting

_WIDTH = 100
_FIELD = "      {:<6}"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the actions."""
    _add_show(subparsers)
    score = subparsers.add_parser(
        "score",
        help="what the sealed runtime can call, beside other VMMs",
        description="Compile the policy for each driver, follow it for every system call, and print what it "
        "lets through beside the published figures of other VMMs. Lower is better.",
        epilog="Exit status: 0, or 1 when a score of this runtime is above --max.",
    )
    score.add_argument(
        "--max", type=float, metavar="SCORE", help="the highest score to accept, but for the broker"
    )
    score.add_argument("--json", action="store_true", help="print JSON")
    score.set_defaults(run=reporting(_score))


def _add_show(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = subparsers.add_parser(
        "show",
        help="the policy of the sealed runtime: each call, its conditions, the reason",
        description="Print what the runtime's own process may call once it is sealed. Every other call is a "
        "violation.",
    )
    show.add_argument(
        "--driver",
        choices=NAMES,
        help="only what this driver needs, or what another process of ours may do",
    )
    show.add_argument("--thread", choices=THREADS, default=PROCESS, help=f"default: {PROCESS}")
    show.add_argument("--policy", type=Path, metavar="FILE", help="default: the one that is shipped")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=reporting(_show))


def _show(arguments: argparse.Namespace) -> int:
    policy = load_policy(path=arguments.policy) if arguments.policy else policy_of(arguments.driver)
    rules = rules_of(policy, arguments.driver, arguments.thread)
    if arguments.json:
        print(json.dumps([_described(rule) for rule in rules], indent=2))
        return GOOD
    calls = {call for rule in rules if rule.action == actions.ALLOW for call in rule.calls}
    whom = arguments.driver or "every driver"
    print(f"policy {policy.source} for {whom}, threads {arguments.thread}: {len(calls)} calls")
    for _, alternatives in groupby(rules, key=lambda rule: rule.number):
        print("\n".join(_explained(list(alternatives))))
    return GOOD


def _described(rule: Rule) -> dict[str, Any]:
    return {
        "calls": rule.calls,
        "conditions": [asdict(condition) for condition in rule.conditions],
        "action": actions.describe(rule.action),
        "reason": rule.reason,
        "features": sorted(rule.features),
        "threads": sorted(rule.threads),
        "line": rule.line,
    }


def _explained(alternatives: Sequence[Rule]) -> Iterator[str]:
    """One rule of the file: its calls, when they are allowed, why, and for which features."""
    rule = alternatives[0]
    yield ""
    yield f"  {', '.join(rule.calls)}"
    answer = "" if rule.action == actions.ALLOW else f"answered with {actions.describe(rule.action)}, "
    label = "when"
    for alternative in alternatives:
        yield from _field(label, answer + alternative.when)
        label = "or"
    yield from _field("why", rule.reason)
    yield from _field("for", ", ".join(sorted(rule.features)))


def _field(name: str, text: str) -> Iterator[str]:
    lead = _FIELD.format(name)
    yield textwrap.fill(text, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))


# -- score ---------------------------------------------------------------------------------------------------


CHILD_ROWS = {name: child.title for name, child in CHILDREN.items() if child.title}


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One row of the comparison; ours: this runtime's own. unfiltered, escape: None where not published."""

    name: str
    unit: str
    allowed: int
    unfiltered: int | None
    escape: int | None
    score: float
    ours: bool


def measure(policy: Policy) -> dict[tuple[str, str], Survey]:
    """What each driver's threads let through, by driver and kind of thread; computed, nothing is installed.

    The children that we filter are there as well, once their guest can run.

    Raises:
        PolicyError, SealError: the policy cannot be compiled.
    """
    bound = policy.bind(pid=1)
    found = {}
    for driver in FEATURES:
        programs: list[bytes] = []
        for thread in threads_of(driver):
            default = actions.NOTIFY if thread == PROCESS else actions.KILL_PROCESS
            programs.append(
                compile_rules(rules_of(bound, driver, thread), default, arch=policy.architecture).code
            )
            found[driver, thread] = survey(programs, policy.architecture)
    for child in CHILD_ROWS:
        rules = rules_of(policy_of(child, policy.architecture).bind(pid=1), child, PROCESS)
        program = compile_rules(rules, actions.NOTIFY, arch=policy.architecture)
        found[child, PROCESS] = survey([program.code], policy.architecture)
    return found


def score_rows(measured: Mapping[tuple[str, str], Survey]) -> list[ScoreRow]:
    """This runtime, as measured, and the others, the best first."""
    rows = [_ours(driver, thread, surface_of(found)) for (driver, thread), found in measured.items()]
    rows += [
        ScoreRow(vmm.name, vmm.unit, vmm.allowed, vmm.unfiltered, vmm.escape, vmm.score, ours=False)
        for vmm in PUBLISHED
    ]
    return sorted(rows, key=lambda row: row.score)


def _ours(driver: str, thread: str, surface: Surface) -> ScoreRow:
    name = CHILD_ROWS.get(driver) or f"this runtime's shim, {driver}" + (", vCPU" if thread == VCPU else "")
    unit = "thread" if thread == VCPU else "process"
    escape = len(surface.escape)
    return ScoreRow(name, unit, surface.allowed, surface.unfiltered, escape, surface.score, ours=True)


def _score(arguments: argparse.Namespace) -> int:
    rows = score_rows(measure(load_policy()))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print("\n".join(_table(rows)))
    limited = [row for row in rows if row.ours and not row.name.startswith(CHILD_ROWS["broker"])]
    too_high = [row for row in limited if arguments.max is not None and row.score > arguments.max]
    for row in too_high:
        print(f"kata-ctl: {row.name} scores {row.score:g}, more than {arguments.max:g}", file=sys.stderr)
    return FAULTS if too_high else GOOD


def _table(rows: Sequence[ScoreRow]) -> Iterator[str]:
    width = max(len(row.name) for row in rows)
    line = f"{{:1}} {{:<{width}}} {{:<8}} {{:>6}} {{:>10}} {{:>7}} {{:>7}}"
    yield line.format("", "", "unit", "calls", "unfiltered", "escape", "score").rstrip()
    for row in rows:
        unfiltered = "-" if row.unfiltered is None else row.unfiltered
        escape = "-" if row.escape is None else row.escape
        mark = "*" if row.ours else ""
        yield line.format(mark, row.name, row.unit, row.allowed, unfiltered, escape, f"{row.score:g}")
    yield ""
    yield "* computed from the policy that is shipped; the others are as published, x86_64, August 2026."
    yield "- is not published. calls: let through at all; unfiltered: whatever their arguments; escape: those"
    yield "that lead out of the process. Lower is better; kata_hypervisor.seccomp.score has the weights."
