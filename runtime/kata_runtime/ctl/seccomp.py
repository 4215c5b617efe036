"""kata-ctl seccomp: how processes are confined, and what they need. Each action is a module of its own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kata_hypervisor.errors import HypervisorError

if TYPE_CHECKING:
    import argparse

    from kata_runtime.ctl.main import Subparsers

GOOD, FAULTS, COULD_NOT_RUN = 0, 1, 2
ACTIONS = ("status", "policy", "verify", "trace", "profile", "report", "provoke")


def add_parser(subparsers: Subparsers) -> None:
    """Register the command and its actions."""
    parser = subparsers.add_parser("seccomp", help="show and explain how processes are confined")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name in ACTIONS:
        importlib.import_module(f"kata_runtime.ctl.seccomp_{name}").add_parser(actions)


def reporting(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make an action print its errors in place of raising them; the exit status is then COULD_NOT_RUN."""

    def guarded(arguments: argparse.Namespace) -> int:
        try:
            status = run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read has seen enough; nothing more is to be written when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return GOOD
        except (HypervisorError, OSError) as error:
            print(f"kata-ctl: {error}", file=sys.stderr)
            return COULD_NOT_RUN
        return status

    return guarded
