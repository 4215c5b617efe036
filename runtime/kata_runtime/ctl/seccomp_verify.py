"""`kata-ctl seccomp verify`: whether this host's kernel does what the policy says, rule by rule."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from kata_hypervisor.driver_policy import NAMES, features_of, policy_of
from kata_hypervisor.seccomp.policy import Policy, load_policy
from kata_hypervisor.seccomp.verify import Case, HostCheck, Report, check_host, verify_policy
from kata_runtime.ctl.seccomp import FAULTS, GOOD, reporting


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "verify",
        help="try every rule of the policy on this host's kernel; run it first on a new platform",
        description="Look up what sealing needs of this host, then try every rule of the policy in child "
        "processes: allowed arguments must pass, each that differs must be refused, and so must every "
        "call that is in no rule.",
        epilog="Exit status: 0 all is as it must be, 1 something is not, 2 the policy is wrong.",
    )
    parser.add_argument(
        "--driver",
        choices=NAMES,
        help="only what this driver needs, or what another process of ours may do; default: all drivers",
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="default: the one that is shipped")
    parser.add_argument("--json", action="store_true", help="print JSON, with every case")
    parser.set_defaults(run=reporting(run))


def run(arguments: argparse.Namespace) -> int:
    """Verify, print the report and return the exit status."""
    policy = load_policy(path=arguments.policy) if arguments.policy else policy_of(arguments.driver)
    features = features_of(arguments.driver) if arguments.driver else None
    checks = check_host()
    unfit = [check for check in checks if check.needed and not check.ok]
    report = Report(policy, ()) if unfit else verify_policy(policy, features)
    good = report.ok and not unfit
    if arguments.json:
        cases = [{**asdict(case), "ok": case.ok} for case in report.cases]
        host = [asdict(check) for check in checks]
        print(json.dumps({"ok": good, "host": host, "skipped": report.skipped, "cases": cases}, indent=2))
    else:
        print("\n".join([*_host_lines(checks), "", *_report_lines(report, policy)]))
    return GOOD if good else FAULTS


def _host_lines(checks: Sequence[HostCheck]) -> Iterator[str]:
    for check in checks:
        result = "ok" if check.ok else "FAIL" if check.needed else "note"
        advice = f" ({check.advice})" if check.advice else ""
        yield f"{result:<5} {check.name}: {check.found}{advice}"


def _report_lines(report: Report, policy: Policy) -> Iterator[str]:
    """A line for each rule, with its calls; each case that went otherwise below it."""
    if not report.cases:
        yield "no rule was tried: this host lacks what sealing needs"
        return
    calls = {rule.number: ", ".join(rule.calls) for rule in policy.rules}
    by_rule: dict[int, list[Case]] = {}
    for case in report.cases:
        by_rule.setdefault(case.rule, []).append(case)
    for number in sorted(by_rule, key=lambda rule: rule or len(policy.rules) + 1):
        cases = by_rule[number]
        failed = [case for case in cases if not case.ok]
        what = f"rule {number}: {calls[number]}" if number else "calls that are in no rule"
        yield f"{'FAIL' if failed else 'ok':<5} {what} ({len(cases)} cases)"
        yield from (f"        {case}" for case in failed)
    if report.skipped:
        yield f"note  this host lacks: {', '.join(report.skipped)}"
    yield ""
    yield f"{len(report.cases)} cases, {len(report.failed)} otherwise than {policy.source} says"
