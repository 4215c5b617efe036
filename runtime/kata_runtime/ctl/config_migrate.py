"""`kata-ctl config migrate`: a file of another Kata runtime becomes one of ours; every change is reported."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_configuration.tell.migration import Migration
    from kata_runtime.ctl.main import Subparsers

COMPLETE, LEFT, COULD_NOT_RUN = 0, 1, 2
RUNTIMES = {"runtime-go": "Kata's Go runtime", "runtime-rs": "Kata's runtime-rs"}


def add_parser(subparsers: Subparsers) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "migrate",
        help="turn a file of another Kata runtime into one of this runtime",
        description="Write a file as this runtime reads it, to standard output or --output, and report on "
        "standard error each change with its reason, the heaviest first: what is lost, then what was "
        "renamed, moved or has another value; what asked for nothing is counted. Comments stay. Drop-ins are "
        "files of their own: migrate them one by one.",
        epilog="Exit status: 0 the new file loads and nothing is lost, 1 something is lost or left to "
        "decide, and is listed, 2 a file could not be read or written.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the other runtime's configuration.toml")
    parser.add_argument("--from", dest="runtime", required=True, choices=RUNTIMES, help="whose file it is")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a new file; default: standard output")
    parser.add_argument(
        "--harmless", action="store_true", help="also list what was dropped and asked for nothing"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Migrate the file and return the exit status."""
    from kata_configuration import ConfigurationError
    from kata_configuration.parse import source
    from kata_configuration.tell.migration import migrate

    try:
        text = source.read(arguments.file).text
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return COULD_NOT_RUN
    heading = f"# Made of a file of {RUNTIMES[arguments.runtime]} by kata-ctl config migrate.\n\n"
    migration = migrate(text, heading, arguments.output or Path("(standard output)"), arguments.file)
    if not migration.text:
        _report_left(migration, f"{arguments.file} is not TOML; correct this first:")
        return LEFT
    if not _write(migration.text, arguments.output):
        return COULD_NOT_RUN
    _report(migration, arguments.file, harmless=arguments.harmless)
    return COMPLETE if migration.complete else LEFT


def _write(text: str, output: Path | None) -> bool:
    if output is None:
        print(text, end="")
        return True
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        print(f"{output}: exists already (remove it, or name another file)", file=sys.stderr)
        return False
    except OSError as error:
        print(f"{output}: cannot be written: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return False
    return True


def _report(migration: Migration, file: Path, *, harmless: bool) -> None:
    """Report what was changed, where in the source, and what is left, by weight; all on standard error."""
    from kata_configuration.tell.migration import Weight
    from kata_configuration.tell.reports import printable

    headings = {
        Weight.PROTECTION: "lost protections: this version does not have what the source asked for:",
        Weight.LOST: "lost: the source asked for this, and this version does not do it:",
        Weight.CHANGED: "changed:",
        Weight.HARMLESS: "dropped, and nothing is lost:",
    }
    for weight, heading in headings.items():
        changes = [change for change in migration.changes if change.weight is weight]
        if weight is Weight.HARMLESS and not harmless:
            if changes:
                print(
                    f"dropped {len(changes)} that asked for nothing (--harmless lists them)", file=sys.stderr
                )
            continue
        if changes:
            print(heading, file=sys.stderr)
        for change in changes:
            place = f"{file}:{change.line}" if change.line else f"{file}"
            print(printable(f"  {place}: {change}"), file=sys.stderr)
    if not migration.changes:
        print("nothing to change", file=sys.stderr)
    if migration.left:
        _report_left(migration, "left to decide, or to look at:")


def _report_left(migration: Migration, heading: str) -> None:
    print(heading, *(f"  {found}" for found in migration.left), sep="\n", file=sys.stderr)
