"""`kata-ctl log-level SANDBOX [LEVEL]`: what a running sandbox logs, and from now on."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from kata_runtime.ctl import running
from kata_runtime.ctl.errors import CommandError
from kata_runtime.ctl.shim_call import call_shim
from kata_runtime.logging import LEVELS, printable

if TYPE_CHECKING:
    from kata_runtime.containerd_api.loglevels_pb2 import LogLevels
    from kata_runtime.ctl.main import Subparsers

DONE, REFUSED = 0, 1

COMPONENTS = ("runtime", "hypervisor")
FIXED = {
    "agent": "the agent's level is on the guest kernel's command line: set enable_debug in [agent.kata], and "
    "start the pod anew"
}
"""What has a level that does not change while the guest runs, and what to do."""


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "log-level",
        help="show or change what a running sandbox logs",
        description="Show from which level on a running sandbox logs to containerd, or change it until the "
        "sandbox ends. The runtime is the shim; the hypervisor is what the shim says of it and, at debug, "
        "each line of the guest's console and of the programs that run the machine. Needs root.",
        epilog="Exit status: 0 done, 1 the shim refused, 2 there is no such sandbox or level.",
    )
    parser.add_argument("sandbox", help="its id, or a prefix of it")
    parser.add_argument(
        "level",
        nargs="*",
        help=f"{', '.join(LEVELS)}: for all; or COMPONENT=LEVEL, with {' or '.join(COMPONENTS)}",
    )
    parser.set_defaults(run=run)


def wanted_levels(words: list[str]) -> dict[str, str]:
    """Read the command's words: by component, its level.

    Raises:
        CommandError: one is none.
    """
    levels: dict[str, str] = {}
    for word in words:
        component, separator, level = word.rpartition("=")
        if component in FIXED:
            raise CommandError(f"cannot change the level of the {component}: {FIXED[component]}")
        if level not in LEVELS:
            raise CommandError(f"there is no log level {level!r}; use one of {', '.join(LEVELS)}")
        if separator and component not in COMPONENTS:
            raise CommandError(f"there is no component {component!r}; use one of {', '.join(COMPONENTS)}")
        levels |= dict.fromkeys([component] if separator else COMPONENTS, level)
    return levels


def run(arguments: argparse.Namespace) -> int:
    """Ask the one shim that is meant."""
    levels = wanted_levels(arguments.level)
    return asyncio.run(_set(running.only(arguments.sandbox).socket, levels))


async def _set(path: str, levels: dict[str, str]) -> int:
    from kata_agent.ttrpc.status import RpcError
    from kata_runtime.containerd_api.loglevels_pb2 import LogLevels
    from kata_runtime.shim.log_service import SERVICE, SET_LEVELS

    try:
        answer = await call_shim(path, SERVICE, SET_LEVELS, LogLevels(**levels), LogLevels)
    except RpcError as error:
        print(f"kata-ctl: the shim did not change its log: {printable(str(error))}", file=sys.stderr)
        return REFUSED
    return _show(answer)


def _show(levels: LogLevels) -> int:
    for component in COMPONENTS:
        print(printable(f"{component:<12} {getattr(levels, component)}"))
    return DONE
