"""kata-ctl seccomp: how processes are confined, and what they need. Each action is a module of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from kata_hypervisor.errors import HypervisorError
from kata_runtime.ctl.errors import CommandError

if TYPE_CHECKING:
    import argparse

    from kata_runtime.ctl.main import Subparsers

GOOD, FAULTS = 0, 1
ACTIONS = ("status", "policy", "verify", "trace", "profile", "report", "provoke")


def add_parser(subparsers: Subparsers) -> None:
    """Register the command and its actions."""
    parser = subparsers.add_parser("seccomp", help="show and explain how processes are confined")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name in ACTIONS:
        importlib.import_module(f"kata_runtime.ctl.seccomp_{name}").add_parser(actions)


def reporting(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make an action's errors those of a command: a policy or a profile that is wrong is the user's."""

    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except HypervisorError as error:
            raise CommandError(str(error)) from error

    return guarded
