"""`kata-ctl shim install DIRECTORY`: put the shim where containerd finds it.

containerd looks on its PATH for a name that it derives from the runtime: io.containerd.kata.v2 gives
containerd-shim-kata-v2, the bare io.containerd.kata gives containerd-shim-containerd-kata.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
from pathlib import Path

from kata_configuration.tell import whole_file
from kata_runtime.ctl.errors import CommandError

NAMES = ("containerd-shim-kata-v2", "containerd-shim-containerd-kata")
MAX_SHEBANG = 127

_PROGRAM = """\
#!{python} -IS
# Written by `kata-ctl {by}`. Isolated (-I) and without site (-S), because this runs for every pod;
# the directories of this installation follow the standard library's, and are searched only when needed.
import sys

sys.path += {paths!r}

from {module} import main

sys.exit(main())
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `shim` command."""
    parser = subparsers.add_parser("shim", help="install the shim where containerd finds it")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    install = actions.add_parser(
        "install", help="write the shim's two names into a directory of containerd's PATH"
    )
    install.add_argument(
        "directory", nargs="?", default=Path("/usr/local/bin"), type=Path, help="default: %(default)s"
    )
    install.set_defaults(run=_install)


def _install(arguments: argparse.Namespace) -> int:
    for name in NAMES:
        path: Path = arguments.directory / name
        install_launcher(path)
        print(f"installed {path}")
    return 0


def install_launcher(path: Path) -> None:
    """Write one launcher for the Python that runs this; an existing one is replaced as a whole.

    Raises:
        OSError: the directory cannot be written.
    """
    whole_file.replace(path, launcher_text(sys.executable, module_roots()).encode(), 0o755)


def launcher_text(python: str, paths: list[str]) -> str:
    """The launcher's source. Raises as `program_text`."""
    return program_text(python, paths, "kata_runtime.shim.launcher", "shim install")


def program_text(python: str, paths: list[str], module: str, by: str) -> str:
    """The source of a program that runs `main` of a module. by: the command that writes it.

    Raises:
        CommandError: the interpreter's path is longer than the kernel reads in a first line.
    """
    if len(python) + len("#! -IS") > MAX_SHEBANG or " " in python:
        raise CommandError(
            f"a program's first line cannot name the Python interpreter {python}: its path is too long, or "
            "has a space; install this runtime in an environment elsewhere"
        )
    return _PROGRAM.format(python=python, paths=paths, module=module, by=by)


def module_roots() -> list[str]:
    """The directories from which the four rooms and their dependencies are imported here."""
    import kata_agent
    import kata_configuration
    import kata_hypervisor
    import kata_runtime

    rooms = (kata_runtime, kata_hypervisor, kata_configuration, kata_agent)
    roots = [str(Path(str(room.__file__)).resolve().parent.parent) for room in rooms]
    roots += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return list(dict.fromkeys(roots))
