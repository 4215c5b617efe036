"""A copy of the package, as pip would install it, over which another version is installed while pods run.

The other version is the same source, each module of which first asks in what process it is: in one that has
loaded modules of the first version, it is not imported, and that is told.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from import_graph import ROOMS
from kata_runtime.ctl.shim import NAMES, program_text

VERSION = "99.0.0"
"""Of the version that is installed over the first."""

NOT_ASKED = ("kata_asked.py", "program.py", "rootfs_image.py")
"""The asked module itself, and programs that begin where no package is found."""

_ASK = "OTHER_VERSION = True; import kata_asked; kata_asked.ask(__name__)"
_ASKED = """\
import os, sys

REPORT = {report!r}


def ask(name):
    loaded = sys.modules.get("kata_runtime.identity")
    mixed = loaded is not None and not hasattr(loaded, "OTHER_VERSION")
    line = f"{{'mixed' if mixed else 'whole'}} {{name}} {{' '.join(sys.orig_argv)}}\\n"
    try:
        with open(REPORT, "a") as file:
            file.write(line)
    except OSError as error:
        raise ImportError(f"{{name}} is imported where nothing can be written: {{error}}")
    if mixed:
        raise ImportError(f"{{name}} is of another version")
"""


class InstalledCopy:
    """The package in a directory of its own, and launchers that use it."""

    def __init__(self, directory: Path) -> None:
        self.packages = directory / "packages"
        self._report = directory / "report"
        self._hidden = directory / "hidden"
        for room, source in ROOMS.items():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source / room, self.packages / room, ignore=skipped)

    def write_launchers(self, directory: Path) -> None:
        """Let containerd start this copy's shims, from the directory of its PATH."""
        libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        paths = list(dict.fromkeys([str(self.packages), *libraries]))
        for name in NAMES:
            path = directory / name
            path.write_text(program_text(sys.executable, paths, "kata_runtime.shim.launcher", "a test"))
            path.chmod(0o755)

    def replace(self) -> None:
        """Install the other version over this one, as pip does: no file is kept."""
        (self.packages / "kata_asked.py").write_text(_ASKED.format(report=str(self._report)))
        for path in sorted(self.packages.rglob("*.py")):
            if path.name in NOT_ASKED:
                continue
            text = _asking(path.read_text(encoding="utf-8"))
            path.unlink()
            path.write_text(text, encoding="utf-8")
        version = self.packages / "kata_runtime/version.py"
        version.write_text(re.sub(r'(?m)^VERSION = ".*"', f'VERSION = "{VERSION}"', version.read_text()))
        for cache in list(self.packages.rglob("__pycache__")):
            shutil.rmtree(cache)

    def hide_data(self) -> None:
        """Take away what is no module: policies, tables. Until `show_data`, nobody can read them."""
        for path in list(self.packages.rglob("*")):
            if path.suffix in (".toml", ".compiled", ".txt"):
                target = self._hidden / path.relative_to(self.packages)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)

    def show_data(self) -> None:
        """Undo `hide_data`."""
        shutil.copytree(self._hidden, self.packages, dirs_exist_ok=True)

    def imports(self) -> list[tuple[str, str, str]]:
        """Of each import of the other version: "whole" or "mixed", the module, the process's command line."""
        text = self._report.read_text(encoding="utf-8") if self._report.exists() else ""
        return [tuple(line.split(" ", 2)) for line in text.splitlines()]  # type: ignore[misc]


def _asking(text: str) -> str:
    """A module's source that asks before it does anything else, but for its docstring and __future__."""
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    at = 0
    for node in tree.body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        at = node.end_lineno or 0
    return "".join([*lines[:at], "\n", _ASK, "\n", *lines[at:]])
