"""`kata-ctl config lint`: every fault of configuration files, in one run; and --fix, which fixes some."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from kata_runtime.version import VERSION

if TYPE_CHECKING:
    from kata_configuration import Diagnostic
    from kata_configuration.judge.rule import Rule
    from kata_runtime.ctl.main import Subparsers

CLEAN, FAULTS, COULD_NOT_RUN = 0, 1, 2
FORMATS = ("text", "json", "sarif", "github")

Lint = Callable[[Path], tuple["Diagnostic", ...]]


def add_parser(subparsers: Subparsers) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "lint",
        help="report every fault of configuration files",
        description="Report every fault: place, code, key, what is wrong, what to do, and the text itself. "
        "A file that lints without an error loads, and no other does. Each file is read with its drop-ins, "
        "config.d/*.toml beside it.",
        epilog="Exit status: 0 clean or warnings only, 1 faults, 2 a file could not be read or written.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FILE|DIR",
        help="default: the file in force; a directory means its *.toml, a drop-in the files it belongs to",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument("--fix", action="store_true", help="fix what has exactly one right answer")
    parser.add_argument("--no-host", action="store_true", help="do not check paths and hardware of this host")
    parser.add_argument("--strict", action="store_true", help="let warnings fail too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Lint the files and return the exit status."""
    from kata_configuration import ConfigurationError

    check_host = not arguments.no_host
    try:
        files, lint = _what_to_lint(arguments.paths, check_host)
    except (ConfigurationError, LookupError) as error:
        print(error.args[0] if isinstance(error, LookupError) else error, file=sys.stderr)
        return COULD_NOT_RUN
    unwritten = False
    if arguments.fix:
        shown = sys.stdout if arguments.format == "text" else sys.stderr
        written = [_fix(file, check_host, shown) for file in files]
        unwritten = not all(written)
    # A drop-in belongs to several files; its findings are reported once.
    found = list(dict.fromkeys(diagnostic for file in files for diagnostic in lint(file)))
    _report(arguments.format, found, files)
    print(_summary(len(files), found), file=sys.stderr)
    status = _exit_status(found, strict=arguments.strict)
    return COULD_NOT_RUN if unwritten else status


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return the configuration files that paths stand for, each once.

    A directory stands for the *.toml files in it, and a drop-in for those beside its directory.

    Raises:
        LookupError: a directory has no such file.
    """
    from kata_configuration.layer import dropins

    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found = list(_files_in(path))
            if not found:
                raise LookupError(f"{path}: no *.toml file in this directory")
            files |= dict.fromkeys(found)
        elif dropins.is_drop_in(path) and (bases := _bases_of(path)):
            files |= dict.fromkeys(bases)
        else:
            files[path] = None
    return list(files)


def _bases_of(drop_in: Path) -> list[Path]:
    """Return the files that a drop-in belongs to; where some are called configuration, only these."""
    files = list(_files_in(drop_in.absolute().parent.parent))
    return [path for path in files if path.name.startswith("configuration")] or files


def _files_in(directory: Path) -> Iterator[Path]:
    found = sorted(directory.glob("*.toml"))
    return (path for path in found if not path.name.startswith(".") and not path.is_dir())


def _what_to_lint(paths: Sequence[Path], check_host: bool) -> tuple[list[Path], Lint]:
    """Return the files, and how each is linted: the one in force as strictly as it is loaded."""
    from kata_configuration import discover, lint
    from kata_configuration.layer import discovery
    from kata_configuration.parse.trust import trusted_uids

    host_rules: tuple[Rule, ...] = ()
    if check_host:
        from kata_runtime.ctl.initrd_rule import INITRD_RULE
        from kata_runtime.ctl.kvm_rule import KVM_RULE

        host_rules = (INITRD_RULE, KVM_RULE)
    if paths:
        return expand(paths), lambda path: lint(path, check_host=check_host, host_rules=host_rules)
    path, rule = discover(None, os.environ)
    trusted = trusted_uids() if rule == discovery.ENVIRONMENT else None
    return [path], lambda path: lint(path, check_host=check_host, trusted=trusted, host_rules=host_rules)


def _fix(path: Path, check_host: bool, shown: TextIO) -> bool:
    """Fix a file and its drop-ins, and show what that changes. Returns whether all could be written."""
    from kata_configuration import ConfigurationError
    from kata_configuration.tell import fixing

    try:
        changes = fixing.find_changes(path, check_host=check_host)
    except ConfigurationError:
        return True  # linting says why it cannot be read
    for change in changes:
        try:
            fixing.write(change)
        except OSError as error:
            print(f"{change.path}: cannot be fixed: {error.strerror}", file=sys.stderr)
            return False
        print(change, file=shown)
    return True


def _report(form: str, found: Sequence[Diagnostic], files: Sequence[Path]) -> None:
    from kata_configuration.tell import reports

    if form == "json":
        print(reports.json_report(found, [str(file) for file in files]))
    elif form == "sarif":
        from kata_configuration.tell import sarif

        print(sarif.report(found, VERSION))
    else:
        colour = _wants_colour(sys.stdout)
        for diagnostic in found:
            print(reports.github(diagnostic) if form == "github" else reports.text(diagnostic, colour=colour))


def _wants_colour(stream: TextIO) -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR is set (no-color.org) or the terminal is dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _exit_status(found: Sequence[Diagnostic], *, strict: bool) -> int:
    from kata_configuration.diagnostics import Code, Severity

    unreadable = {Code.UNREADABLE.number, Code.NOT_FOUND.number}
    fatal = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    if any(diagnostic.code in unreadable for diagnostic in found):
        return COULD_NOT_RUN
    return FAULTS if any(diagnostic.severity in fatal for diagnostic in found) else CLEAN


def _summary(files: int, found: Sequence[Diagnostic]) -> str:
    from kata_configuration.tell import reports

    counts = [_count(files, "file")]
    counts += [_count(number, severity.value) for severity, number in reports.tally(found).items()]
    return ", ".join(counts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
