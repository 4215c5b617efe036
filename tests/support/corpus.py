"""The corpus of broken configuration files: its cases, and what the linter says of each.

`python tests/support/corpus.py NAME...` prints what is reported for cases, as in expected.toml, for review.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from kata_configuration import Diagnostic, lint
from kata_configuration.parse.toml_text import value_text

FOLDER = Path(__file__).parents[1] / "configuration/corpus"

# The machine that cases with a table [host] are linted for: its CPUs, and 16 GiB of memory.
CPUS = 8
PAGES = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * 2**20}


@dataclass(frozen=True, order=True, slots=True)
class Fault:
    """A diagnostic as a case expects it. place: FILE:LINE:FIRST-LAST. marks: the characters there."""

    place: str
    code: str
    severity: str
    marks: str
    says: str

    def __str__(self) -> str:
        """Write it as a table of expected.toml."""
        names = ("place", "code", "severity", "marks", "says")
        return "[[fault]]\n" + "".join(f"{name} = {_text(getattr(self, name))}\n" for name in names)


@dataclass(frozen=True, slots=True)
class Case:
    """A broken file. host: path -> mode of the files that the machine has; empty for checks without one."""

    folder: Path
    story: str
    host: Mapping[str, str]
    faults: tuple[Fault, ...]

    @property
    def file(self) -> Path:
        """The broken file."""
        return self.folder / "configuration.toml"


def names() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def read(name: str) -> Case:
    """Read a case."""
    folder = FOLDER / name
    data = tomllib.loads((folder / "expected.toml").read_text(encoding="utf-8"))
    faults = tuple(Fault(**fault) for fault in data.get("fault", ()))
    return Case(folder, data["story"], data.get("host", {}), faults)


def find(case: Case) -> list[Fault]:
    """Lint a case's file, and return what is reported for it."""
    if not case.host:
        return [_fault(case.folder, found) for found in lint(case.file, check_host=False)]
    with tempfile.TemporaryDirectory() as name, _host(case.host):
        copy = Path(name) / case.file.name
        copy.write_bytes(case.file.read_bytes())
        copy.chmod(0o644)
        return [_fault(copy.parent, found) for found in lint(copy)]


def _fault(folder: Path, found: Diagnostic) -> Fault:
    place = os.path.relpath(found.path, folder)
    marks = found.excerpt[found.column - 1 :][: found.length] if found.line else ""
    if found.line:
        last = found.column + max(found.length, 1) - 1
        place += f":{found.line}:{found.column}" + (f"-{last}" if last > found.column else "")
    says = f"{found.key}: {found.message} ({found.hint})".removeprefix(": ").replace(f"{folder}/", "")
    return Fault(place, found.code, found.severity.value, marks, says)


def _text(value: str) -> str:
    """Write a string without escapes where that is possible."""
    return f"'{value}'" if '"' in value and "'" not in value and value.isprintable() else value_text(value)


@contextlib.contextmanager
def _host(files: Mapping[str, str]) -> Iterator[None]:
    """Let this machine have these files, and of the paths that configurations name no others.

    What stands at a directory's path is its mode.
    """
    folders = {str(parent) for path in files for parent in Path(path).parents} | {"/boot"}
    modes = dict.fromkeys(folders, stat.S_IFDIR | 0o755) | {"/dev/urandom": stat.S_IFCHR | 0o666}
    for path, mode in files.items():
        modes[path] = (stat.S_IFDIR if path in folders else stat.S_IFREG) | int(mode, 8)
    real_stat = Path.stat

    def status(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if str(path).startswith(tempfile.gettempdir()):
            return real_stat(path, follow_symlinks=follow_symlinks)
        if str(path) in modes:
            return os.stat_result((modes[str(path)], 1 + list(modes).index(str(path)), *(0,) * 8))
        raise FileNotFoundError(2, "No such file or directory", str(path))

    def access(path: Path, mode: int) -> bool:
        return bool(status(path).st_mode & stat.S_IXUSR)

    with (
        mock.patch("pathlib.Path.stat", status),
        mock.patch("os.access", access),
        mock.patch("os.cpu_count", return_value=CPUS),
        mock.patch("os.sysconf", PAGES.__getitem__),
        mock.patch("kata_configuration.judge.host.KVM", Path("/")),
        mock.patch("kata_configuration.judge.host.JIT", Path("/nonexistent")),
    ):
        yield


if __name__ == "__main__":
    for each in sys.argv[1:] or names():
        print(f"# {each}: {read(each).story}\n", *find(read(each)), sep="\n")
