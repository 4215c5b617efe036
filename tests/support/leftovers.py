"""What sandboxes leave on a host: processes, mounts, sockets, directories, cgroups, network namespaces.

A listing of now against a listing of before. What belongs to another containerd on the same host is no
concern of a test: its sandboxes say in their undo stacks whose they are.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from kata_runtime.broker.undo import NAME
from kata_runtime.identity import SOCKET_ROOT, STATE_ROOT
from kata_runtime.resource.cgroups import hierarchies

PATIENCE = 10.0
_NAMES = {"kata-shim", "kata-broker", "virtiofsd"}
_PROGRAMS = re.compile(r"containerd-shim|virtiofsd|qemu-system|-name sandbox-|/run/kata-containers")
_MOUNTS = re.compile(r"kata|nsfs|/run/netns")


class Leftovers:
    """The state of the host when made, for one containerd that keeps its state below `root`.

    namespace: containerd's namespace, which is in the path of its containers' cgroups; no other may use it.
    """

    def __init__(self, root: Path, namespace: str) -> None:
        self._root = root
        self._namespace = namespace
        self._before = self._listing()

    def settle(self, patience: float = PATIENCE) -> list[str]:
        """A line for each thing that is new and stays."""
        deadline = time.monotonic() + patience
        while (left := sorted(self._listing() - self._before)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _listing(self) -> set[str]:
        foreign = list(_foreign_sandboxes(self._root))
        sockets = {header["socket"] for _, header in foreign}
        directories = {directory for directory, _ in foreign}
        found = {f"directory {path}" for path in _entries(STATE_ROOT) if path not in directories}
        found |= {f"socket {path}" for path in _entries(SOCKET_ROOT) if path not in sockets}
        found |= {
            f"bundle {path}" for path in self._root.glob(f"state/io.containerd.*.task/{self._namespace}/*")
        }
        found |= {f"network namespace {path}" for path in _entries("/run/netns")}
        found |= set(_mounts(str(self._root)))
        found |= {f"cgroup {path}" for path in self._cgroups()}
        found |= set(self._processes(directories, {header["sandbox"] for _, header in foreign}))
        return found

    def _cgroups(self) -> Iterator[Path]:
        for hierarchy in hierarchies():
            yield from Path(hierarchy.mountpoint).glob(f"{self._namespace}/**/")

    def _processes(self, directories: set[str], sandboxes: set[str]) -> Iterator[str]:
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                stat = (directory / "stat").read_text()
                words = (directory / "cmdline").read_text(errors="replace").replace("\0", " ")
                cgroups = (directory / "cgroup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
            if fields[0] in "ZX" and fields[1] == "1":
                continue  # dead and waiting for the host's init to look
            if name not in _NAMES and not _PROGRAMS.search(words) and f"/{self._namespace}/" not in cgroups:
                continue
            address = re.search(r"-address (\S+)", words)
            if address and not address[1].startswith(str(self._root)):
                continue
            sandbox = re.search(r"-name sandbox-([^, ]+)", words)
            if (sandbox and sandbox[1] in sandboxes) or any(path in words for path in directories):
                continue
            yield f"process {directory.name} ({name}), parent {fields[1]}: {words[:120]}"


def _foreign_sandboxes(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Directory and record of each sandbox that another containerd owns."""
    for directory in _entries(STATE_ROOT):
        try:
            with open(os.path.join(directory, NAME), encoding="utf-8") as file:
                header = json.loads(file.readline())
        except (OSError, ValueError):
            continue
        if not header["bundle"].startswith(str(root)):
            yield directory, header


def _entries(directory: str) -> list[str]:
    try:
        return [os.path.join(directory, name) for name in os.listdir(directory)]
    except FileNotFoundError:
        return []


def _mounts(root: str) -> Iterator[str]:
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        if root in line or _MOUNTS.search(line):
            yield f"mount {line}"
