"""`kata-ctl containerd configure`: our runtime handlers in containerd's configuration."""

from __future__ import annotations

import argparse
import difflib
import glob
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kata_configuration.tell import whole_file
from kata_runtime.ctl.errors import CommandError, sentence
from kata_runtime.ctl.shim import NAMES

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers

DONE, COULD_NOT_RUN = 0, 2
FILE = Path("/etc/containerd/config.toml")
CONFIGURATION = "/etc/kata-containers/configuration.toml"
HANDLER = f"kata={CONFIGURATION}"
_RESTART = "restart containerd for it to count: systemctl restart containerd (its pods go on)"


def add_parser(subparsers: Subparsers) -> None:
    """Add the `containerd` command."""
    parser = subparsers.add_parser("containerd", help="tell containerd of the runtime")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    configure = actions.add_parser(
        "configure",
        help="write runtime handlers into containerd's configuration, or take them out again",
        description="Write runtime handlers for the CRI, which a RuntimeClass names, into containerd's "
        "configuration (containerd 1.6 to 2.x). All else in the file stays, comments too; run again it "
        "changes nothing but what is asked for otherwise; --remove gives back the file as it was.",
        epilog="Exit status: 0 the file is as asked for, 2 it cannot be, and the reason is told.",
    )
    configure.add_argument("--config", type=Path, default=FILE, metavar="FILE", help="(default: %(default)s)")
    configure.add_argument(
        "--handler",
        action="append",
        metavar="NAME=CONFIGURATION",
        help=f"a handler, and this runtime's configuration for it; may be repeated (default: {HANDLER})",
    )
    configure.add_argument("--remove", action="store_true", help="take out all that this command has written")
    configure.add_argument("--dry-run", action="store_true", help="print the difference, and write nothing")
    configure.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Change the file and return the exit status."""
    from kata_runtime.ctl.containerd_config import ContainerdConfigError, add, remove

    if arguments.remove and arguments.handler:
        raise CommandError("--remove takes out every handler that this command wrote: leave out --handler")
    path: Path = arguments.config
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if arguments.remove:
            changed = remove(text)
        else:
            handlers = dict(map(_handler, arguments.handler or [HANDLER]))
            changed = add(text, handlers)
            _check_imports(path, changed)
        if arguments.dry_run:
            _show(path, text, changed)
        elif changed == text:
            print(f"{path}: nothing to change")
        else:
            _write(path, changed)
            print(f"{path}: {'taken out' if arguments.remove else 'written'}; {_RESTART}")
    except ContainerdConfigError as error:
        print(f"{path}: nothing was changed: {error}", file=sys.stderr)
        return COULD_NOT_RUN
    except (OSError, UnicodeDecodeError) as error:
        reason = sentence(error) if isinstance(error, OSError) else str(error)
        print(f"{path}: nothing was changed: {reason}", file=sys.stderr)
        return COULD_NOT_RUN
    if not arguments.remove and shutil.which(NAMES[0]) is None:
        print(f"{NAMES[0]} is not on the PATH: kata-ctl shim install writes it", file=sys.stderr)
    return DONE


def _handler(text: str) -> tuple[str, Path]:
    """Raises ContainerdConfigError unless it is NAME=CONFIGURATION, the path of a file."""
    from kata_runtime.ctl.containerd_config import ContainerdConfigError

    name, separator, path = text.partition("=")
    if not separator or not os.path.isabs(path):
        raise ContainerdConfigError(f"--handler {text}: must be NAME=CONFIGURATION, as in {HANDLER}")
    if not os.path.isfile(path):
        raise ContainerdConfigError(f"--handler {text}: there is no such configuration: {path}")
    return name, Path(path)


def _check_imports(path: Path, text: str) -> None:
    """Raise ContainerdConfigError where a file that is imported takes the place of the handlers."""
    from kata_runtime.ctl.containerd_config import ContainerdConfigError, imports, sets_runtimes

    for pattern in imports(text):
        for name in sorted(glob.glob(str(path.parent / pattern))):
            if Path(name) != path and sets_runtimes(Path(name).read_text(encoding="utf-8")):
                raise ContainerdConfigError(
                    f"it imports {name}, which has tables of the CRI plugin too, and containerd would take "
                    f"those in place of these: give that file, --config {name}"
                )


def _show(path: Path, before: str, after: str) -> None:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(path), f"{path} (changed)"
    )
    sys.stdout.writelines(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _write(path: Path, text: str) -> None:
    """Put the text in the file's place as a whole, with its mode and owner; remove one that is empty."""
    target = path.resolve()
    if not text:
        target.unlink()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    whole_file.rewrite(target, text.encode())
