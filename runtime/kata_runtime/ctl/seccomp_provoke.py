"""`kata-ctl seccomp provoke SANDBOX`: have a shim do what its filter forbids, to see what comes of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from kata_runtime.ctl import running
from kata_runtime.ctl.shim_call import call_shim
from kata_runtime.logging import printable

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers

PROVOKED, REFUSED = 0, 1


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "provoke",
        help="make a sandbox's shim try execve, which ends the pod (debugging only)",
        description="Ask the shim of a running sandbox to replace itself by another program, as code that a "
        "guest has brought in would try. The filter refuses it, and the pod ends with a sentence that says "
        "so. The shim does it only with enable_debug = true in [runtime].",
        epilog="Exit status: 0 the shim tried, 1 it would not, 2 there is no such sandbox.",
    )
    parser.add_argument("sandbox", help="its id, or a prefix of it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask the one shim that is meant."""
    return asyncio.run(_provoke(running.only(arguments.sandbox).socket))


async def _provoke(path: str) -> int:
    from google.protobuf.empty_pb2 import Empty

    from kata_agent.ttrpc.status import RpcError
    from kata_runtime.shim.debug_service import PROVOKE, SERVICE

    try:
        await call_shim(path, SERVICE, PROVOKE, Empty(), Empty)
    except RpcError as error:
        print(f"kata-ctl: the shim did not try: {printable(str(error))}", file=sys.stderr)
        return REFUSED
    print("the shim called execve; see the container's output and containerd's log for what came of it")
    return PROVOKED
