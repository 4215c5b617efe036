"""The sandbox's control groups on the host, version 1, 2 or both, without a service manager.

The shim, the broker, the VMM and its helpers are all in one leaf: what a pod costs is what its cgroup says.
Standard library only: the broker imports this.
Sources: cgroups(7), the kernel's admin-guide/cgroup-v1 (devices.rst too) and cgroup-v2; systemd.slice(5) for
how slices nest; the OCI runtime specification, config-linux.md, "Cgroups Path".
"""

from __future__ import annotations

import errno
import os
import signal
import time

from kata_runtime import syscalls
from kata_runtime.broker import device_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from kata_runtime.broker.device_rules import DeviceRule

GRACE = 2.0
"""How long a leaf may take to become empty and go, in seconds."""
_PAUSE = 0.01
_UNAVAILABLE = (errno.EROFS, errno.EPERM, errno.EACCES)


class CgroupError(Exception):
    """A cgroup path that cannot be used, or a cgroup that cannot be made."""


# -- where -------------------------------------------------------------------------------------------------


def cgroup_path(cgroups_path: str | None, key: str) -> str:
    """Return the absolute path of the sandbox's cgroup within each hierarchy.

    cgroups_path: the specification's linux.cgroupsPath: "/default/id", "slice:prefix:name" in systemd's form,
    or
        nothing, which gives /kata/<key>.

    Raises:
        CgroupError: the path is not one that could be ours.
    """
    if not cgroups_path:
        return f"/kata/{key}"
    if "/" not in cgroups_path and cgroups_path.count(":") == 2:
        slice_, prefix, name = cgroups_path.split(":")
        path = "/".join(
            ["", *_nested(slice_ or "system.slice", cgroups_path), _unit(prefix, name, cgroups_path)]
        )
    else:
        path = "/" + cgroups_path.removeprefix("/")
    names = path[1:].split("/")
    if (
        not all(names)
        or "." in names
        or ".." in names
        or "\0" in path
        or any(len(name) > 255 for name in names)
    ):
        raise CgroupError(f"linux.cgroupsPath {cgroups_path[:200]!r} is not a path below the root cgroup")
    return path


def _nested(slice_: str, cgroups_path: str) -> list[str]:
    """Split a slice as systemd nests it: a-b.slice is in a.slice; -.slice is the root."""
    stem = slice_.removesuffix(".slice")
    if stem == "-":
        return []
    parts = stem.split("-")
    if stem == slice_ or not all(parts):
        raise CgroupError(
            f'linux.cgroupsPath {cgroups_path[:200]!r}: {slice_[:100]!r} is no slice, such as "a-b.slice"'
        )
    return ["-".join(parts[: count + 1]) + ".slice" for count in range(len(parts))]


def _unit(prefix: str, name: str, cgroups_path: str) -> str:
    if not name:
        raise CgroupError(f"linux.cgroupsPath {cgroups_path[:200]!r} names no unit")
    if name.endswith(".slice"):
        return name
    return f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


class Hierarchy:
    """One mounted hierarchy. version: 1 or 2. controllers: of version 1, such as {"cpu", "cpuacct"}."""

    __slots__ = ("controllers", "mountpoint", "version")

    def __init__(self, mountpoint: str, version: int, controllers: frozenset[str] = frozenset()) -> None:
        self.mountpoint = mountpoint
        self.version = version
        self.controllers = controllers


def hierarchies(mountinfo: str = "/proc/self/mountinfo") -> list[Hierarchy]:
    """Return the mounted hierarchies, each once (proc_pid_mountinfo(5))."""
    found: dict[str, Hierarchy] = {}
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            device, mountpoint = left.split()[2], left.split()[4]
            kind, _, options = right.split()[:3]
            if kind == "cgroup2":
                found.setdefault(device, Hierarchy(mountpoint, 2))
            elif kind == "cgroup":
                controllers = {
                    name for name in options.split(",") if name not in ("rw", "ro", "clone_children", "xattr")
                }
                found.setdefault(device, Hierarchy(mountpoint, 1, frozenset(controllers)))
    return list(found.values())


def current(hierarchy: Hierarchy, membership: str | None = None) -> str:
    """Return the directory of the cgroup that a process is in.

    membership: the process's /proc/PID/cgroup (cgroups(7)); this one's by default.
    """
    lines = (read_membership() if membership is None else membership).split("\n")
    for line in filter(None, lines):
        number, controllers, path = line.split(":", 2)
        same = (
            number == "0" if hierarchy.version == 2 else hierarchy.controllers & set(controllers.split(","))
        )
        if same and os.path.isdir(hierarchy.mountpoint + path):
            return hierarchy.mountpoint + path.rstrip("/")
    return hierarchy.mountpoint


def read_membership(base: str = "/proc/self") -> str:
    """What /proc/PID/cgroup says of a process, whose directory in /proc this is."""
    with open(f"{base}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read()


# -- made and used -----------------------------------------------------------------------------------------


class Cgroup:
    """The sandbox's cgroup: a leaf at the same path in every hierarchy that this host lets us write."""

    def __init__(self, path: str, mounted: list[Hierarchy]) -> None:
        self.path = path
        self._mounted = mounted
        self._leaves: list[tuple[Hierarchy, str]] = []
        self._restriction: _Lines | _DeviceProgram | None = None

    def create(
        self, record: Callable[[str, str, str], None], is_shared: Callable[[str], bool] = lambda path: False
    ) -> None:
        """Make the leaf, and its parents where they are missing.

        record(kind, directory, origin) is called before each directory is made; kind is "cgroup" for the leaf
        and "rmgroup" for a parent; `origin` is the cgroup that we are in now. is_shared(directory) says of a
        parent that is there whether another sandbox made it: the last one to leave removes it.

        Raises:
            CgroupError: no hierarchy can be written, or somebody else's processes are in the leaf.
        """
        membership = read_membership()
        for hierarchy in self._mounted:
            leaf = hierarchy.mountpoint + self.path
            if pids := _settled_members(leaf):
                raise CgroupError(
                    f"cgroup {leaf} is in use by process {pids[0]}: give each sandbox a cgroup of its own"
                )
            try:
                self._create_in(hierarchy, leaf, current(hierarchy, membership), record, is_shared)
            except OSError as error:
                if error.errno not in _UNAVAILABLE:
                    raise CgroupError(f"cannot make cgroup {leaf}: {error.strerror}") from error
            else:
                self._leaves.append((hierarchy, leaf))
        if self._mounted and not self._leaves:
            raise CgroupError(f"cannot make cgroup {self.path}: no hierarchy of this host can be written")

    def _create_in(
        self,
        hierarchy: Hierarchy,
        leaf: str,
        origin: str,
        record: Callable[[str, str, str], None],
        is_shared: Callable[[str], bool],
    ) -> None:
        deadline = time.monotonic() + GRACE
        while True:
            try:
                _make_path(
                    hierarchy, self.path, lambda directory: record("rmgroup", directory, origin), is_shared
                )
                record("cgroup", leaf, origin)
                _make_group(hierarchy, leaf)
            except FileNotFoundError:  # a parent that was shared went with the last sandbox in it
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def join(self, pid: int) -> None:
        """Move a process, with all its threads, into the leaf. Raises CgroupError."""
        for _, leaf in self._leaves:
            try:
                write(leaf, "cgroup.procs", str(pid))
            except OSError as error:
                raise CgroupError(
                    f"cannot move process {pid} into cgroup {leaf}: {error.strerror}"
                ) from error

    def leaf_with_cpuset(self) -> tuple[str, int] | None:
        """The leaf whose cpuset is in force, and its hierarchy's version; None where there is none."""
        for hierarchy, leaf in self._leaves:
            if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
                return leaf, 1
        for hierarchy, leaf in self._leaves:
            if hierarchy.version == 2 and "cpuset" in read(leaf, "cgroup.controllers").split():
                return leaf, 2
        return None

    def controllers(self) -> frozenset[str]:
        """The controllers that are in force on the leaf."""
        found: set[str] = set()
        for hierarchy, leaf in self._leaves:
            if hierarchy.version == 2:
                found.update(read(leaf, "cgroup.controllers").split())
            found |= hierarchy.controllers
        return frozenset(found)

    def restrict_devices(self, rules: Iterable[DeviceRule]) -> str:
        """Let its processes open the devices of these rules and no others; what is open stays usable.

        Returns why this host cannot do it, in a sentence, or nothing.

        Raises:
            CgroupError: it can, and it failed.
        """
        rules = list(rules)
        for hierarchy, leaf in self._leaves:
            if "devices" in hierarchy.controllers:
                _restrict_by_lines(leaf, device_rules.lines(rules))
                self._restriction = _Lines(leaf, rules)
                return ""
        for hierarchy, leaf in self._leaves:
            if hierarchy.version == 2:
                self._restriction = restriction = _DeviceProgram(leaf, rules)
                return restriction.lacking
        return "no hierarchy of this host that can be written controls devices"

    def admit(self, rule: DeviceRule, action: Callable[[], int]) -> int:
        """Let its processes open one more device while something is done. Raises OSError."""
        self.allow(rule)
        try:
            return action()
        finally:
            self.forbid(rule)

    def allow(self, rule: DeviceRule) -> None:
        """Let its processes open one more device. Raises OSError."""
        if self._restriction is not None:
            self._restriction.admit(rule)

    def forbid(self, rule: DeviceRule) -> None:
        """Undo one `allow`. Raises OSError."""
        if self._restriction is not None:
            self._restriction.expel(rule)

    def oom_kills(self) -> int:
        """How many of its processes the kernel killed for want of memory; 0 where no hierarchy counts."""
        for hierarchy, leaf in self._leaves:
            name = "memory.events" if hierarchy.version == 2 else "memory.oom_control"
            try:
                fields = dict(line.split() for line in read(leaf, name).splitlines())
            except FileNotFoundError:
                continue  # this hierarchy does not have the memory controller
            return int(fields.get("oom_kill", 0))
        return 0


def _restrict_by_lines(leaf: str, lines: list[str]) -> None:
    try:
        write(leaf, "devices.deny", "a")
        for line in lines:
            write(leaf, "devices.allow", line)
        found = read(leaf, "devices.list").splitlines()
    except OSError as error:
        raise CgroupError(f"cannot restrict the devices of cgroup {leaf}: {error.strerror}") from error
    if beyond := set(found) - set(lines):
        raise CgroupError(
            f"the devices of cgroup {leaf} are not restricted: the kernel lists {min(beyond)} as well"
        )


class _Lines:
    """The devices of a version 1 cgroup that is restricted."""

    def __init__(self, leaf: str, rules: list[DeviceRule]) -> None:
        self._leaf = leaf
        self._rules = list(rules)

    def admit(self, rule: DeviceRule) -> None:
        """Let its processes open one more device. Raises OSError."""
        write(self._leaf, "devices.allow", str(rule))
        self._rules.append(rule)

    def expel(self, rule: DeviceRule) -> None:
        """Undo `admit`; what another rule allows stays allowed. Raises OSError."""
        self._rules.remove(rule)
        write(self._leaf, "devices.deny", str(rule))
        # The kernel has one line for a device, from which that has taken its letters, whoever they came from.
        for other in self._rules:
            if other.is_of(rule):
                write(self._leaf, "devices.allow", str(other))


class _DeviceProgram:
    """The program that is asked about the devices of a version 2 cgroup.

    lacking: why this kernel takes none, in a sentence, or nothing.
    """

    def __init__(self, leaf: str, rules: list[DeviceRule]) -> None:
        self._leaf = leaf
        self._rules = list(rules)
        self._attached = -1
        self.lacking = ""
        try:
            self._attach(rules)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
                raise CgroupError(
                    f"cannot restrict the devices of cgroup {leaf}: {error.strerror}"
                ) from error
            self.lacking = f"this kernel takes no program for the devices of cgroup {leaf}: {error.strerror}"

    def admit(self, rule: DeviceRule) -> None:
        """Let its processes open one more device. Raises OSError."""
        if not self.lacking:
            self._attach([*self._rules, rule])
            self._rules.append(rule)

    def expel(self, rule: DeviceRule) -> None:
        """Undo `admit`; what another rule allows stays allowed. Raises OSError."""
        if not self.lacking:
            self._rules.remove(rule)
            self._attach(self._rules)

    def _attach(self, rules: list[DeviceRule]) -> None:
        """Put a program of these rules in the place of the last one: all that are there must agree."""
        group = os.open(self._leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attached = syscalls.attach_device_program(group, device_rules.program(rules), self._attached)
        finally:
            os.close(group)
        if self._attached >= 0:
            os.close(self._attached)
        self._attached = attached


def _make_path(
    hierarchy: Hierarchy, path: str, record: Callable[[str], None], is_shared: Callable[[str], bool]
) -> None:
    """Make the parents of a group that are missing; `record` those that are a sandbox's."""
    directory = hierarchy.mountpoint
    for name in path[1:].split("/")[:-1]:
        directory = f"{directory}/{name}"
        if not os.path.isdir(directory) or is_shared(directory):
            record(directory)
        _make_group(hierarchy, directory)


def _make_group(hierarchy: Hierarchy, directory: str) -> None:
    parent = os.path.dirname(directory)
    if hierarchy.version == 2:
        _delegate(parent)
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        pass
    if "cpuset" in hierarchy.controllers:
        _inherit_cpuset(parent, directory)


# -- undone: by directory, because the rollback journal knows nothing else -----------------------------------


def members(directory: str) -> list[int]:
    """Processes in a cgroup; none when it does not exist (any more)."""
    try:
        return [int(line) for line in read(directory, "cgroup.procs").split()]
    except (FileNotFoundError, OSError) as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise


def _settled_members(directory: str) -> list[int]:
    """As `members`; a sandbox of the same name that has just ended may be about to leave."""
    deadline = time.monotonic() + GRACE
    while (pids := members(directory)) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return pids


def empty(directory: str, origin: str, spared: Collection[int], grace: float = GRACE) -> list[int]:
    """Move the spared processes back to their origin, kill all others; return those that would not end."""
    for pid in set(members(directory)) & set(spared):
        _move_out(pid, directory, origin)
    deadline = time.monotonic() + grace
    while pids := members(directory):
        if time.monotonic() > deadline:
            return pids
        if os.path.exists(f"{directory}/cgroup.kill"):
            write(directory, "cgroup.kill", "1")
        else:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        time.sleep(_PAUSE)
    return []


def _move_out(pid: int, directory: str, origin: str) -> None:
    """Put a process back; where its origin is gone or has become a parent, nearer to the root."""
    candidates = [origin]
    while os.path.exists(os.path.dirname(candidates[-1]) + "/cgroup.procs"):
        candidates.append(os.path.dirname(candidates[-1]))
    for candidate in candidates:
        try:
            write(candidate, "cgroup.procs", str(pid))
        except ProcessLookupError:
            return
        except OSError as error:
            last = error
        else:
            return
    raise OSError(last.errno, f"cannot move process {pid} out of cgroup {directory}: {last.strerror}")


def remove(directory: str, grace: float = GRACE) -> None:
    """Remove an empty cgroup; while its last process leaves it is busy for a moment. Raises OSError."""
    deadline = time.monotonic() + grace
    while True:
        try:
            _remove_once(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _remove_once(directory: str) -> None:
    # By unlinkat(2), which a sealed broker makes for others too, and not by a call of its own.
    parent = os.open(os.path.dirname(directory), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.rmdir(os.path.basename(directory), dir_fd=parent)
    finally:
        os.close(parent)


def remove_parent(directory: str) -> None:
    """Remove a parent that was made for us, unless others use it by now. Raises OSError."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
            raise


# -- files -------------------------------------------------------------------------------------------------


def read(directory: str, name: str) -> str:
    """Read a control file. Raises OSError."""
    with open(f"{directory}/{name}", encoding="ascii", errors="replace") as file:
        return file.read()


def write(directory: str, name: str, text: str) -> None:
    """Write a control file in one system call; the kernel's answer is that call's. Raises OSError."""
    fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _delegate(directory: str) -> None:
    """Hand a version 2 group's controllers on to its children, one by one: one may be in use elsewhere."""
    missing = set(read(directory, "cgroup.controllers").split()) - set(
        read(directory, "cgroup.subtree_control").split()
    )
    for controller in sorted(missing & {"cpu", "cpuset", "io", "memory", "pids"}):
        try:
            write(directory, "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            # A group with processes of its own, or one that is not ours to change: its children do without.
            if error.errno not in (errno.EBUSY, errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, *_UNAVAILABLE):
                raise


def _inherit_cpuset(parent: str, directory: str) -> None:
    """Fill a fresh cpuset: without processors and memory nodes it takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read(directory, name).strip():
            write(directory, name, read(parent, name).strip())
