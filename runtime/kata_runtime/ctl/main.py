"""kata-ctl, the operator's front door.

Each command is a module with `add_parser(subparsers)`, whose parser sets the default `run`, a callable from
the parsed arguments to the exit status. Only the module of the command that was given is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_runtime.ctl.errors import CommandError, sentence

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

PROGRAM = "kata-ctl"
COULD_NOT_RUN = 2


@dataclass(frozen=True, slots=True)
class Command:
    """A command's module, and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "config": Command("kata_runtime.ctl.config", "check, show, compare and convert configuration files"),
    "image": Command("kata_runtime.ctl.image", "build the guest's image"),
    "factory": Command("kata_runtime.ctl.factory", "make the template that virtual machines start from"),
    "env": Command("kata_runtime.ctl.env", "show which configuration, programs and confinement are in force"),
    "check": Command("kata_runtime.ctl.check", "find out what this host can run"),
    "shim": Command("kata_runtime.ctl.shim", "install the shim where containerd finds it"),
    "containerd": Command("kata_runtime.ctl.containerd", "tell containerd of the runtime"),
    "zygote": Command("kata_runtime.ctl.zygote", "start and show the process that forks shims"),
    "seccomp": Command("kata_runtime.ctl.seccomp", "show and explain how processes are confined"),
    "network": Command("kata_runtime.ctl.network", "compare a pod's network with its guest's"),
    "confinement": Command("kata_runtime.ctl.confinement", "show what each process of a pod is on the host"),
    "direct-volume": Command(
        "kata_runtime.ctl.direct_volume", "register devices that guests mount as volumes"
    ),
    "log-level": Command("kata_runtime.ctl.log_level", "show or change what a running sandbox logs"),
    "metrics": Command("kata_runtime.ctl.metrics", "print metrics of the running sandboxes for Prometheus"),
    "cleanup": Command("kata_runtime.ctl.cleanup", "undo what dead sandboxes have left on this host"),
    "version": Command("kata_runtime.ctl.version", "show the version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 2 when it could not run, which a sentence says."""
    given = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in given if not argument.startswith("-")), None)
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Operate and inspect the Kata runtime.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        if name != chosen:
            subparsers.add_parser(name, help=command.summary)
            continue
        try:
            add_parser: Callable[[Subparsers], None] = importlib.import_module(command.module).add_parser
        except ImportError as error:
            return _refused(f"the command {name} cannot be loaded: {error}")
        add_parser(subparsers)
    arguments = parser.parse_args(given)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()
    except CommandError as error:
        return _refused(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            # What is left in the buffer would break again when the interpreter exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
            return COULD_NOT_RUN
        return _refused(sentence(error))
    return status


def _refused(reason: str) -> int:
    print(f"{PROGRAM}: {reason}", file=sys.stderr)
    return COULD_NOT_RUN


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`."""
    import select

    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
