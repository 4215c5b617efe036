"""`kata-ctl config show`: the values in force, and where each is from."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.ctl.main import Subparsers

SHOWN, FAULTS = 0, 1


def add_parser(subparsers: Subparsers) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "show",
        help="print the values in force, and where each is from",
        description="Print what a file and its drop-ins set, merged, as a file that loads again to the same.",
        epilog="Exit status: 0 shown, 1 the configuration has faults and is not in force.",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: the file in force")
    parser.add_argument("--effective", action="store_true", help="print defaults too: every value in force")
    parser.add_argument(
        "--origin", action="store_true", help="say of each value which line, annotation or default it is from"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, always with origins")
    parser.add_argument(
        "--annotation",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=VALUE",
        help="as if the pod had this annotation; may be repeated",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the values and return the exit status."""
    from kata_configuration import ConfigurationError
    from kata_configuration.tell import effective

    try:
        configuration = load_named(arguments.file, dict(arguments.annotation))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return FAULTS
    values = effective.values(configuration, defaults=arguments.effective)
    if arguments.json:
        print(effective.json_report(configuration, values))
    else:
        print(effective.toml(configuration, values, origins=arguments.origin), end="")
    return SHOWN


def load_named(file: Path | None, annotations: dict[str, str]) -> Configuration:
    """Load the file that was named, or the one in force, with annotations; this host is not looked at.

    Raises:
        ConfigurationError: there is none, or it has faults.
    """
    from kata_configuration import discover, load

    path, rule = (file, "the command line") if file else discover(None, os.environ)
    return load(path, check_host=False, source=rule, annotations=annotations)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
