"""The command line of a shim, in the single-dash style of Go's flag package.

argparse would cost as much as the interpreter's own start.
"""

from __future__ import annotations

_STRINGS = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "config")
_SWITCHES = ("debug", "info", "v", "version", "help", "h")
ACTIONS = ("start", "delete", "daemon")

USAGE = """\
usage: containerd-shim-kata-v2 -namespace NS -address ADDR -id ID [-bundle DIR] [-debug] start|delete|daemon
       containerd-shim-kata-v2 -info | -v

containerd runs this; operators use kata-ctl.
  start    start a shim for the sandbox of the bundle in the current directory, print its address
  delete   remove everything of a sandbox whose shim is gone
  daemon   as start, in the foreground and with logs on standard error (for debugging)
"""


class UsageError(ValueError):
    """The command line is not a shim's."""


class Arguments:
    """The parsed command line; a flag that was not given is an empty string or False."""

    __slots__ = ("action", "switches", "values")

    def __init__(self, values: dict[str, str], switches: set[str], action: str) -> None:
        self.values = values
        self.switches = switches
        self.action = action

    def value(self, name: str) -> str:
        """Value of a flag, or an empty string."""
        return self.values.get(name, "")

    def require(self, name: str) -> str:
        """Value of a flag that must be given.

        Raises:
            UsageError: it was not.
        """
        if not self.values.get(name):
            raise UsageError(f"-{name} is missing; containerd gives it to every shim")
        return self.values[name]


def parse(argv: list[str]) -> Arguments:
    """Parse the arguments after the program's name.

    Raises:
        UsageError: a flag that does not exist, a flag without its value, or an unknown action.
    """
    values: dict[str, str] = {}
    switches: set[str] = set()
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("-"):
            return Arguments(values, switches, _action(argument, list(arguments)))
        name, has_value, value = argument.lstrip("-").partition("=")
        if name in _SWITCHES:
            if value not in ("false", "0"):
                switches.add(name)
        elif name not in _STRINGS:
            raise UsageError(f"unknown flag {argument!r}")
        else:
            given = value if has_value else next(arguments, None)
            if given is None:
                raise UsageError(f"flag -{name} needs a value")
            values[name] = given
    return Arguments(values, switches, "")


def _action(action: str, rest: list[str]) -> str:
    if action not in ACTIONS:
        raise UsageError(f"unknown action {action!r}: use {', '.join(ACTIONS)}")
    if rest:
        raise UsageError(f"unexpected arguments after {action!r}: {' '.join(rest)}")
    return action
