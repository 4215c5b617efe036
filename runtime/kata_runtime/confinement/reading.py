"""Reading what the kernel reports of a process; what it means is in `facts` and `judging`."""

from __future__ import annotations

import os
import stat

from kata_runtime import device_names
from kata_runtime.confinement import facts
from kata_runtime.confinement.facts import Facts, Place, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def read_place(pid: int, proc: str = "/proc") -> Place:
    """Read in which namespaces a process is, and its root directory.

    Raises:
        ProcessLookupError: it has exited.
        PermissionError: they are not shown to this process.
    """
    try:
        return _read_place(f"{proc}/{pid}")
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None


def read(pid: int, proc: str = "/proc") -> Facts:
    """Read what is known of a process and each of its threads.

    Raises:
        ProcessLookupError: it has exited.
        PermissionError: its namespaces are not shown to this process.
    """
    base = f"{proc}/{pid}"
    try:
        threads = _read_threads(base)
        place = _read_place(base)
        limits = facts.parse_limits(_text(f"{base}/limits"))
        owner = os.stat(f"{base}/limits").st_uid
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    if not threads:
        raise ProcessLookupError(f"no process {pid}")
    return Facts(pid, threads, place, limits, owner)


def _read_place(base: str) -> Place:
    namespaces = {}
    for name in facts.NAMESPACES:
        try:
            namespaces[name] = os.readlink(f"{base}/ns/{name}")
        except FileNotFoundError:
            os.stat(base)  # this kernel has no such namespaces, and the process is there
    root = os.stat(f"{base}/root/.")
    return Place(namespaces, (root.st_dev, root.st_ino))


def _read_threads(base: str) -> list[Thread]:
    """Every thread, by id. Read until two listings agree, so that one started in between is not missed."""
    found: dict[int, Thread] = {}
    while True:
        tids = {int(name) for name in os.listdir(f"{base}/task")}
        if tids == found.keys():
            return [found[tid] for tid in sorted(found)]
        found = {tid: found[tid] for tid in found.keys() & tids}
        for tid in tids - found.keys():
            try:
                found[tid] = Thread(tid, facts.parse_status(_text(f"{base}/task/{tid}/status")))
            except (FileNotFoundError, ProcessLookupError):
                continue


def descendants(pid: int, proc: str = "/proc") -> Iterator[int]:
    """Processes that a process has started, and theirs; none where the kernel has no list of children."""
    try:
        tids = os.listdir(f"{proc}/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return
    for tid in tids:
        try:
            children = _text(f"{proc}/{pid}/task/{tid}/children").split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child, proc)


def read_mounts(pid: int, proc: str = "/proc") -> list[facts.Mount]:
    """What is mounted in a process's mount namespace, below its root. Raises OSError."""
    return facts.parse_mounts(_text(f"{proc}/{pid}/mountinfo"))


def read_cgroups(pid: int, proc: str = "/proc") -> dict[str, str]:
    """See `facts.parse_cgroups`. Raises OSError."""
    return facts.parse_cgroups(_text(f"{proc}/{pid}/cgroup"))


def read_descriptors(pid: int, proc: str = "/proc") -> dict[str, int]:
    """How many descriptors a process has, by kind. Raises OSError."""
    return facts.count(_kinds(f"{proc}/{pid}/fd"))


def _kinds(directory: str) -> Iterator[str]:
    for number in os.listdir(directory):
        path = f"{directory}/{number}"
        try:
            target, found = os.readlink(path), os.stat(path)
        except FileNotFoundError:
            continue
        mode = found.st_mode
        if stat.S_ISCHR(mode):
            target = device_names.path_of_character(found.st_rdev) or target
        device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        yield facts.kind_of(target, device=device, directory=stat.S_ISDIR(mode))


def _text(path: str) -> str:
    # Only a line feed ends a line: the kernel escapes no other character that could.
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        return file.read()
