"""kata-ctl config: what operators ask of configuration files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_configuration import Diagnostic
    from kata_runtime.ctl.main import Subparsers

CLEAN, FAULTS, COULD_NOT_RUN = 0, 1, 2


def add_parser(subparsers: Subparsers) -> None:
    """Register the command and its subcommands."""
    parser = subparsers.add_parser("config", help="check configuration files")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    lint = actions.add_parser(
        "lint",
        help="report every fault of configuration files",
        description="Report every fault on a line of its own: place, code, key, what is wrong, what to do. "
        "A file that lints without an error loads, and no other does.",
        epilog="Exit status: 0 clean or warnings only, 1 faults, 2 a file could not be read.",
    )
    lint.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="default: the file that is in force"
    )
    lint.add_argument("--no-host", action="store_true", help="do not check paths and hardware of this host")
    lint.add_argument("--strict", action="store_true", help="let warnings fail too")
    lint.set_defaults(run=run_lint)


def run_lint(arguments: argparse.Namespace) -> int:
    """Lint the files and return the exit status."""
    from kata_configuration import ConfigurationError, discover, lint

    files: list[Path] = arguments.files
    if not files:
        try:
            files = [discover(None, os.environ)[0]]
        except ConfigurationError as error:
            print(error, file=sys.stderr)
            return COULD_NOT_RUN
    found: list[Diagnostic] = []
    for file in files:
        diagnostics = lint(file, check_host=not arguments.no_host)
        found += diagnostics
        for diagnostic in diagnostics:
            print(diagnostic)
    print(_summary(len(files), found), file=sys.stderr)
    return _exit_status(found, strict=arguments.strict)


def _exit_status(found: Iterable[Diagnostic], *, strict: bool) -> int:
    from kata_configuration.diagnostics import Code, Severity

    unreadable = {Code.UNREADABLE.number, Code.NOT_FOUND.number}
    fatal = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    status = CLEAN
    for diagnostic in found:
        if diagnostic.code in unreadable:
            return COULD_NOT_RUN
        if diagnostic.severity in fatal:
            status = FAULTS
    return status


def _summary(files: int, found: Sequence[Diagnostic]) -> str:
    from kata_configuration import Severity

    counts = [_count(files, "file")]
    counts += [
        _count(sum(diagnostic.severity is severity for diagnostic in found), severity.value)
        for severity in Severity
    ]
    return ", ".join(counts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
