"""What the sandboxes of one containerd leave on the host, whatever other containerds do there meanwhile.

Processes, mounts, sockets, directories, cgroups: a listing of now against one of before. Network namespaces
with a name are not in it: the runtime gives none a name, and a name does not say whose it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kata_runtime.broker.cgroups import hierarchies
from kata_runtime.identity import SandboxIdentity
from patience import PATIENCE

CLIENTS = ("containerd", "ctr")


class Leftovers:
    """The host's state when made.

    root: where containerd has its state and its socket. namespace: containerd's, which is in the path of each
    container's cgroup. sandboxes: asked for the identity of everything that may ever have been a sandbox.
    """

    def __init__(
        self,
        root: Path,
        namespace: str,
        sandboxes: Callable[[], Iterable[SandboxIdentity]],
    ) -> None:
        self._root = root
        self._namespace = namespace
        self._sandboxes = sandboxes
        self._before = self._listing()

    def settle(self, patience: float = PATIENCE) -> list[str]:
        """A line for each thing that is new and stays."""
        deadline = time.monotonic() + patience
        while (left := sorted(self._listing() - self._before)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _listing(self) -> set[str]:
        sandboxes = list(self._sandboxes())
        paths = [path for one in sandboxes for path in (one.directory, one.socket)]
        found = {f"path {path}" for path in paths if os.path.lexists(path)}
        found |= {
            f"path {path}" for path in self._root.glob(f"state/io.containerd.*.task/{self._namespace}/*")
        }
        found |= {f"mount {line}" for line in _mounts() if _mentions(line, [str(self._root), *paths])}
        found |= {f"cgroup {path}" for path in self._cgroups()}
        marks = [str(self._root), *paths, *(f"sandbox-{one.id}" for one in sandboxes)]
        found |= set(self._processes(marks))
        return found

    def _cgroups(self) -> Iterator[Path]:
        for hierarchy in hierarchies():
            yield from Path(hierarchy.mountpoint).glob(f"{self._namespace}/**/")

    def _processes(self, marks: list[str]) -> Iterator[str]:
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                stat = (directory / "stat").read_text(errors="replace")
                command = (directory / "cmdline").read_text(errors="replace").split("\0")
                cgroups = (directory / "cgroup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
            if fields[0] in "ZX" and fields[1] == "1":
                continue  # dead, and waiting for the host's init to look
            if os.path.basename(command[0]) in CLIENTS:
                continue
            line = " ".join(command)
            if f"/{self._namespace}/" in cgroups or _mentions(line, marks):
                # Nothing that changes while it lives: two listings are compared.
                yield f"process {directory.name}: {line[:99] or name}"


def _mounts() -> list[str]:
    return Path("/proc/mounts").read_text(encoding="utf-8").splitlines()


def _mentions(line: str, marks: Iterable[str]) -> bool:
    return any(mark in line for mark in marks)
