"""`kata-ctl seccomp diff` and `profile`: a trace against a policy, and as one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kata_hypervisor.driver_policy import NAMES, policy_of, rules_of
from kata_hypervisor.seccomp import profile
from kata_hypervisor.seccomp import trace as traces
from kata_hypervisor.seccomp.comparison import compare
from kata_hypervisor.seccomp.policy import PROCESS, THREADS
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.trace import Observation
from kata_hypervisor.seccomp.trace_arguments import spell
from kata_runtime.ctl.errors import CommandError
from kata_runtime.ctl.seccomp import FAULTS, GOOD, reporting


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the actions."""
    diff = subparsers.add_parser(
        "diff",
        help="a trace against a policy: what is missing, what is not used",
        description="Print the calls of a trace that a policy does not allow, and the rules that nothing in "
        "the trace needed. A condition on an argument that traces do not keep is taken to hold.",
        epilog="Exit status: 0 nothing is missing, 1 something is, 2 a file cannot be read.",
    )
    diff.add_argument("trace", type=Path, metavar="TRACE", help="what kata-ctl seccomp trace wrote")
    diff.add_argument(
        "policy",
        type=Path,
        nargs="?",
        metavar="POLICY",
        help="a profile of any format; default: the shipped policy",
    )
    diff.add_argument("--driver", choices=NAMES, help="of the shipped policy, what this driver needs")
    diff.add_argument(
        "--kind", choices=THREADS, help=f"of the shipped policy, for which threads; default: {PROCESS}"
    )
    _add_choice(diff)
    diff.set_defaults(run=reporting(_diff))
    emit = subparsers.add_parser(
        "profile",
        help="a trace as a profile",
        description="Turn a trace into a profile that allows what was seen and nothing else: as a policy of "
        "this project, as an OCI seccomp profile, or as the names that urunc and solo5-hvt compile in.",
    )
    emit.add_argument(
        "traces",
        type=Path,
        nargs="+",
        metavar="TRACE",
        help="what kata-ctl seccomp trace wrote; several traces make one profile",
    )
    emit.add_argument("--format", choices=profile.FORMATS, default="policy", help="default: policy")
    emit.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    _add_choice(emit)
    emit.set_defaults(run=reporting(_profile))


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--program", default="", metavar="NAME", help="only programs whose names begin so")
    parser.add_argument("--thread", default="", metavar="NAME", help="only threads whose names begin so")


def _diff(arguments: argparse.Namespace) -> int:
    if arguments.policy and (arguments.driver or arguments.kind):
        raise CommandError("--driver and --kind are of the shipped policy: leave them out, or POLICY")
    trace = traces.load(arguments.trace).of(arguments.program, arguments.thread)
    if arguments.policy:
        rules, source = profile.read(arguments.policy), str(arguments.policy)
    else:
        policy = policy_of(arguments.driver, trace.arch)
        rules, source = rules_of(policy, arguments.driver, arguments.kind or PROCESS), policy.source
    found = compare(trace, rules)
    print(f"missing in {source}: {len(found.missing) or 'nothing'}")
    width = max(map(len, map(_call, found.missing)), default=0)
    for seen in found.missing:
        print(f"  {_call(seen):<{width}} {seen.count:>8}  {seen.program}, thread {seen.thread}")
    print(f"not used by this trace: {len(found.unused) or 'nothing'}")
    for rule in found.unused:
        print(f"  {_rule(rule)}")
    return FAULTS if found.missing else GOOD


def _call(seen: Observation) -> str:
    arguments = ", ".join(spell(seen.call, index, value) for index, value in seen.arguments)
    return f"{seen.call} {arguments}".rstrip()


def _rule(rule: Rule) -> str:
    condition = f", when {rule.when}" if rule.conditions else ""
    return f"{', '.join(rule.calls)}{condition}"


def _profile(arguments: argparse.Namespace) -> int:
    trace, *others = (traces.load(path) for path in arguments.traces)
    for other in others:
        trace = trace.merged(other)
    trace = trace.of(arguments.program, arguments.thread)
    text = profile.write(trace, arguments.format)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    if trace.foreign:
        print(
            f"kata-ctl: left out, without a name on {trace.arch}: {', '.join(trace.foreign)}", file=sys.stderr
        )
    return GOOD
