"""`kata-ctl version`."""

from __future__ import annotations

import argparse

from kata_runtime.version import VERSION


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `version` command."""
    parser = subparsers.add_parser("version", help="show the version")
    parser.set_defaults(run=_version)


def _version(_: argparse.Namespace) -> int:
    print(f"kata-ctl {VERSION}")
    return 0
