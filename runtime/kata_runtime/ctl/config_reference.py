"""`kata-ctl config schema`, `explain` and `reference`: what the models say of the file format."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers

DONE, UNKNOWN = 0, 1


def add_parser(subparsers: Subparsers) -> None:
    """Register the actions."""
    schema = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of configuration files",
        description="Print the JSON Schema (draft 2020-12) of configuration files. Editors with taplo or "
        'tombi use it when the first line of a file is "#:schema PATH".',
    )
    schema.set_defaults(run=run_schema)
    explain = subparsers.add_parser(
        "explain",
        help="say what a key means",
        description="Say what a key means: type, unit, default, range, hypervisors, release, annotation.",
        epilog="Exit status: 0 explained, 1 there is no such key.",
    )
    explain.add_argument(
        "key", metavar="KEY", help='a key alone, or with its table: "hypervisor.qemu.default_memory"'
    )
    explain.set_defaults(run=run_explain)
    reference = subparsers.add_parser(
        "reference",
        help="print the reference of all keys, as Markdown",
        description="Print the reference of all keys, as Markdown: docs/configuration.md.",
    )
    reference.set_defaults(run=run_reference)


def run_schema(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    from kata_configuration.tell import schema

    print(json.dumps(schema.build(), indent=2))
    return DONE


def run_explain(arguments: argparse.Namespace) -> int:
    """Print what is known of a key, and return the exit status."""
    from kata_configuration.diagnostics import quoted
    from kata_configuration.tell import reference

    blocks = reference.explain(arguments.key)
    if blocks:
        print("\n\n".join(blocks))
        return DONE
    best = reference.suggest(arguments.key)
    hint = f"did you mean {best}?" if best else "kata-ctl config reference lists all keys"
    print(f"there is no key {quoted(arguments.key)}: {hint}", file=sys.stderr)
    return UNKNOWN


def run_reference(arguments: argparse.Namespace) -> int:
    """Print the page."""
    from kata_configuration.tell import reference

    print(reference.page(), end="")
    return DONE
