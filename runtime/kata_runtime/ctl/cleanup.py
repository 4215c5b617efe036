"""`kata-ctl cleanup`."""

from __future__ import annotations

import argparse
import sys

from kata_runtime import identity
from kata_runtime.broker import cleanup


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `cleanup` command."""
    parser = subparsers.add_parser(
        "cleanup",
        help="undo what dead sandboxes have left on this host",
        description="Undo the processes, mounts, cgroups, files and network devices of every sandbox whose "
        "shim, broker and bundle do not exist any more. A sandbox that runs, or that containerd still knows, "
        "is left alone. Exit status: 0 when nothing is left, 1 when something could not be undone.",
    )
    parser.set_defaults(run=_cleanup)


def _cleanup(_: argparse.Namespace) -> int:
    left = cleanup.sweep(identity.STATE_ROOT)
    for line in left:
        print(f"left behind: {line}", file=sys.stderr)
    return 1 if left else 0
