"""`kata-ctl seccomp trace` and `run`: which calls a program makes, and whether a profile is enough for it."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from kata_hypervisor.seccomp import actions, notification, profile, syscalls
from kata_hypervisor.seccomp import trace as traces
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.notification import Call
from kata_hypervisor.seccomp.supervised import SupervisedCommand
from kata_hypervisor.seccomp.trace import Observation, Trace
from kata_hypervisor.seccomp.trace_arguments import spell
from kata_hypervisor.seccomp.trace_recorder import read_origin, record
from kata_runtime.ctl.errors import CommandError
from kata_runtime.ctl.seccomp import FAULTS, reporting

_MAX_SHOWN = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the actions."""
    trace = subparsers.add_parser(
        "trace",
        help="which system calls a program makes, by thread and with arguments",
        description="Run a command under a filter that asks about every call, let each one through, and "
        "record what was called: by program and thread, with the arguments that decide what a call does. All "
        "its descendants are recorded too, so a containerd that is started here shows whole pods. Calls that "
        "a filter of the program's own refuses are not seen. A program cannot install a filter with a "
        'listener meanwhile (trace a pod with shim_seccomp = "off"), nor gain privileges by set-user-id.',
        epilog="Exit status: the command's own, 128 + number if a signal killed it; 2 if it cannot be run.",
    )
    trace.add_argument(
        "--output", type=Path, metavar="FILE", help="write the record there, for diff and profile"
    )
    trace.add_argument("--quiet", action="store_true", help="print no table")
    _add_command(trace)
    trace.set_defaults(run=reporting(_trace))
    run = subparsers.add_parser(
        "run",
        help="run a program under a profile; a call outside of it is named and ends the program",
        description="Run a command under the filter that a profile describes (.toml: a policy, .json: OCI, "
        "else names). The first call that it does not allow is named, and everything is killed.",
        epilog="Exit status: the command's own, 1 if a call was refused, 2 if it cannot be run.",
    )
    run.add_argument("--profile", type=Path, metavar="FILE", required=True)
    _add_command(run)
    run.set_defaults(run=reporting(_run))


def _add_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")


def _command(arguments: argparse.Namespace) -> list[str]:
    command: list[str] = arguments.command
    return command[1:] if command[:1] == ["--"] else command


def _trace(arguments: argparse.Namespace) -> int:
    command = _command(arguments)
    if not command:
        raise CommandError("nothing to trace: give a command after --")
    trace, listeners = record(command)
    if arguments.output:
        traces.save(trace, arguments.output)
    if not arguments.quiet:
        print("\n".join(_table(trace)))
    if listeners:
        print(
            f"kata-ctl: a program asked {listeners} times for a seccomp listener of its own and was refused "
            "(EBUSY): a traced process has one already. What it does then is not what it does otherwise",
            file=sys.stderr,
        )
    return trace.status


def _table(trace: Trace) -> Iterator[str]:
    total = sum(seen.count for seen in trace.observations)
    yield f"{len(trace.calls)} different calls, {total} in all: {' '.join(trace.command)}"
    for (program, thread), seen in groupby(trace.observations, key=lambda seen: (seen.program, seen.thread)):
        yield ""
        yield f"{program}, thread {thread}"
        for call, variants in groupby(seen, key=lambda one: one.call):
            yield _row(call, list(variants))
    if trace.foreign:
        yield ""
        yield f"without a name on {trace.arch}, and in no profile: {', '.join(trace.foreign)}"


def _row(call: str, variants: Sequence[Observation]) -> str:
    """One call of one thread: how often, and with which arguments, the most frequent first."""
    count = sum(variant.count for variant in variants)
    ordered = sorted(variants, key=lambda variant: -variant.count)
    shown = [_arguments(variant) for variant in ordered[:_MAX_SHOWN] if variant.arguments]
    if len(ordered) > _MAX_SHOWN:
        shown.append(f"and {len(ordered) - _MAX_SHOWN} more")
    return f"  {call:<18} {count:>8}  {'  '.join(shown)}".rstrip()


def _arguments(seen: Observation) -> str:
    arguments = ",".join(spell(seen.call, index, value) for index, value in seen.arguments)
    return f"{arguments} ({seen.count})"


class _Guard:
    """Answers what a profile does not allow: named, refused, and the end of the command."""

    def __init__(self, supervised: SupervisedCommand, source: Path) -> None:
        self._supervised = supervised
        self._source = source
        self.refused = False

    def answer(self, listener: int, call: Call) -> None:
        """Name the first call, and kill everything."""
        if not self.refused:
            self.refused = True
            name = syscalls.name_of(call.number, syscalls.native()) or "an unknown call"
            origin = read_origin(call.tid)
            arguments = ", ".join(map(hex, call.arguments))
            print(
                f"kata-ctl: {origin.program}, thread {origin.thread} called {name} ({call.number}), which "
                f"{self._source} does not allow; arguments: {arguments}; the command was killed",
                file=sys.stderr,
            )
        self._supervised.kill()
        notification.refuse(listener, call, errno.EPERM)


def _run(arguments: argparse.Namespace) -> int:
    command = _command(arguments)
    if not command:
        raise CommandError("nothing to run: give a command after --")
    program = compile_rules(profile.read(arguments.profile), actions.NOTIFY)
    syscalls.preload(syscalls.native())
    with SupervisedCommand(command, program.code) as supervised:
        guard = _Guard(supervised, arguments.profile)
        status = supervised.run(guard.answer)
    return FAULTS if guard.refused else status
