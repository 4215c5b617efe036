"""`kata-ctl config diff`: what differs in effect between two configurations."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kata_runtime.ctl.config_show import load_named

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers

SAME, DIFFERENT, FAULTS = 0, 1, 2


def add_parser(subparsers: Subparsers) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "diff",
        help="say what differs in effect between two configurations",
        description="Compare the values in force of two files, each with its drop-ins, defaults too. What "
        "concerns confinement comes first.",
        epilog="Exit status: 0 no difference, 1 differences, 2 a configuration has faults.",
    )
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B", nargs="?", help="default: the file in force")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the differences and return the exit status."""
    from kata_configuration import ConfigurationError
    from kata_configuration.tell import comparing

    try:
        before, after = load_named(arguments.before, {}), load_named(arguments.after, {})
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return FAULTS
    found = comparing.differences(before, after)
    if arguments.json:
        print(comparing.json_report(found))
    else:
        for difference in found:
            print(difference)
        confining = sum(difference.security for difference in found)
        differ = "1 key differs" if len(found) == 1 else f"{len(found)} keys differ"
        concern = "concerns" if confining == 1 else "concern"
        print(f"{differ}, {confining} {concern} confinement", file=sys.stderr)
    return DIFFERENT if found else SAME
