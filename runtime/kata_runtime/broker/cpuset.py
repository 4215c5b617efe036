"""The cpuset of a sandbox's leaf, and groups of single threads in it, each on one CPU of the host.

A thread is moved there by root's right to the group, which takes no capability over threads of other users,
as sched_setaffinity(2) would; and whoever owns the thread cannot leave. Of version 2 such a group is a
threaded one, and the leaf becomes the root of a threaded subtree, in which processes stay.
Standard library only: the broker imports this.
Sources: the kernel's admin-guide/cgroup-v1/cpusets.rst, and cgroup-v2.rst, "Threads" and "Cpuset".
"""

from __future__ import annotations

import os

from kata_runtime.broker import cgroups
from kata_runtime.cpu_list import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

UNDO = "threads"
"""The kind of entry in the rollback journal that is about such a group."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Cpuset:
    """The cpuset of one leaf. leaf: its directory. version: of its hierarchy, 1 or 2."""

    __slots__ = ("leaf", "version")

    def __init__(self, leaf: str, version: int) -> None:
        self.leaf = leaf
        self.version = version

    @property
    def cpus(self) -> frozenset[int]:
        """The CPUs of the host that the leaf has, those of them that are there. Raises OSError."""
        name = "cpuset.effective_cpus" if self.version == 1 else "cpuset.cpus.effective"
        return parse(cgroups.read(self.leaf, name).strip())

    def hold(self, name: str, tid: int, cpu: int, record: Callable[[str], object]) -> None:
        """Move a thread into a group of its own on one CPU. name: of the group. Raises OSError.

        record(directory) is called before the group is made.
        """
        directory = f"{self.leaf}/{name}"
        record(directory)
        leaf = os.open(self.leaf, _DIRECTORY)
        try:
            os.mkdir(name, 0o755, dir_fd=leaf)
        finally:
            os.close(leaf)
        if self.version == 2:
            cgroups.write(directory, "cgroup.type", "threaded")
            if "cpuset" not in cgroups.read(self.leaf, "cgroup.subtree_control").split():
                cgroups.write(self.leaf, "cgroup.subtree_control", "+cpuset")
        else:
            cgroups.write(directory, "cpuset.mems", cgroups.read(self.leaf, "cpuset.mems").strip())
        cgroups.write(directory, "cpuset.cpus", str(cpu))
        cgroups.write(directory, _threads_file(directory), str(tid))


def release(directory: str, leaf: str) -> None:
    """Let the threads of a group go back to the leaf, and remove the group; nothing where it is gone.

    Raises OSError.
    """
    try:
        name = _threads_file(directory)
        tids = cgroups.read(directory, name).split()
    except FileNotFoundError:
        return
    for tid in tids:
        try:
            cgroups.write(leaf, name, tid)
        except ProcessLookupError:
            continue
    cgroups.remove(directory)


def _threads_file(directory: str) -> str:
    """The file with the threads of a group: by its name in version 1, which has no other of it."""
    return "tasks" if os.path.exists(f"{directory}/tasks") else "cgroup.threads"
