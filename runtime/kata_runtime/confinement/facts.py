"""What the kernel reports of a process, as parsed texts of /proc. No file is opened here.

Names and paths among them are chosen by the process: whoever prints them makes them printable first.
Sources: proc_pid_status(5), proc_pid_limits(5), proc_pid_mountinfo(5), proc_pid_fd(5), namespaces(7).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CAPABILITY_SETS = {
    "effective": "CapEff",
    "permitted": "CapPrm",
    "inheritable": "CapInh",
    "bounding": "CapBnd",
    "ambient": "CapAmb",
}
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
LIMITS = {
    "core": "Max core file size",
    "nofile": "Max open files",
    "nproc": "Max processes",
    "fsize": "Max file size",
    "as": "Max address space",
}
UNLIMITED = -1


class Thread:
    """One thread's credentials and filters. users, groups: real, effective, saved and of the file system.

    capabilities: a mask for each of CAPABILITY_SETS. cpus: of the host, those that it may run on, as the
    kernel lists them.
    """

    __slots__ = (
        "capabilities",
        "cpus",
        "filters",
        "groups",
        "mode",
        "name",
        "no_new_privs",
        "supplementary",
        "tid",
        "users",
    )

    def __init__(self, tid: int, status: Mapping[str, str]) -> None:
        """Read them from the fields of a status file. Raises KeyError, ValueError: it is none."""
        self.tid = tid
        self.name = status["Name"]
        self.users = tuple(map(int, status["Uid"].split()))
        self.groups = tuple(map(int, status["Gid"].split()))
        self.supplementary = tuple(map(int, status["Groups"].split()))
        self.capabilities = {name: int(status[field], 16) for name, field in CAPABILITY_SETS.items()}
        self.cpus = status["Cpus_allowed_list"]
        self.no_new_privs = status["NoNewPrivs"] == "1"
        self.mode = int(status["Seccomp"])
        # Kernels before 5.9 do not count the filters: a thread in filter mode has at least one.
        self.filters = int(status.get("Seccomp_filters", "1" if self.mode == 2 else "0"))


class Place:
    """Where a process is. namespaces: an identity for each, such as "mnt:[4026531841]".

    root: device and inode of its root directory.
    """

    __slots__ = ("namespaces", "root")

    def __init__(self, namespaces: Mapping[str, str], root: tuple[int, int]) -> None:
        self.namespaces = namespaces
        self.root = root

    def differs(self, host: Place) -> tuple[str, ...]:
        """The namespaces that are not the host's."""
        return tuple(name for name, found in self.namespaces.items() if found != host.namespaces.get(name))


class Facts:
    """What is known of one process.

    limits: soft and hard, UNLIMITED for none. owner: who owns its files in /proc; root owns those of a
    process that may not be dumped, whatever its user (proc(5)).
    """

    __slots__ = ("limits", "owner", "pid", "place", "threads")

    def __init__(
        self,
        pid: int,
        threads: list[Thread],
        place: Place,
        limits: Mapping[str, tuple[int, int]],
        owner: int,
    ) -> None:
        self.pid = pid
        self.threads = threads
        self.place = place
        self.limits = limits
        self.owner = owner

    @property
    def dumpable(self) -> bool | None:
        """Whether its own user may trace and dump it; None for root's process, of which it is unknown."""
        user = self.threads[0].users[1]
        return None if user == 0 else self.owner == user

    def capabilities(self, name: str) -> int:
        """All capabilities that any thread has in a set."""
        found = 0
        for thread in self.threads:
            found |= thread.capabilities[name]
        return found

    @property
    def filters(self) -> int:
        """How many seccomp filters each of its threads has at least."""
        return min(thread.filters if thread.mode == 2 else 0 for thread in self.threads)


def parse_status(text: str) -> dict[str, str]:
    """The fields of a status file; a name may hold anything but a line's end, which the kernel escapes."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.split("\n"))}


def parse_limits(text: str) -> dict[str, tuple[int, int]]:
    """Soft and hard limits, by the names of LIMITS."""
    lines = text.split("\n")
    found = {}
    for name, title in LIMITS.items():
        for line in lines:
            if line.startswith(title + " "):
                soft, hard = line[len(title) :].split()[:2]
                found[name] = (_number(soft), _number(hard))
    return found


def _number(text: str) -> int:
    return UNLIMITED if text == "unlimited" else int(text)


# -- what only tools show ------------------------------------------------------------------------------------


class Mount:
    """A mounted file system as a process sees it."""

    __slots__ = ("kind", "options", "point")

    def __init__(self, point: str, kind: str, options: frozenset[str]) -> None:
        self.point = point
        self.kind = kind
        self.options = options

    @property
    def writable(self) -> bool:
        """Whether it can be written to at all; an instance that is read-only says so in its own options."""
        return "ro" not in self.options


def parse_mounts(text: str) -> list[Mount]:
    """The lines of a mountinfo file; lines that are none are left out."""
    found = []
    for line in text.split("\n"):
        left, separator, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if separator and len(before) >= 6 and len(after) >= 1:
            instance = after[2].split(",") if len(after) > 2 else []
            options = frozenset(before[5].split(",")) | ({"ro"} & set(instance))
            found.append(Mount(before[4], after[0], frozenset(options)))
    return found


def parse_cgroups(text: str) -> dict[str, str]:
    """The path of a process's cgroup by controller, "" for version 2 (cgroups(7))."""
    parts = (line.split(":", 2) for line in text.split("\n"))
    return {name: part[2] for part in parts if len(part) == 3 for name in part[1].split(",")}


_NAMED = {
    "anon_inode:kvm-vm": "kvm-vm",
    "anon_inode:[eventfd]": "eventfd",
    "anon_inode:[eventpoll]": "epoll",
    "anon_inode:[pidfd]": "pidfd",
    "anon_inode:[signalfd]": "signalfd",
    "anon_inode:[timerfd]": "timerfd",
    "anon_inode:[io_uring]": "io_uring",
    "anon_inode:[userfaultfd]": "userfaultfd",
    "anon_inode:seccomp notify": "seccomp listener",
    "anon_inode:inotify": "inotify",
    "anon_inode:bpf-prog": "bpf",
    "/dev/null": "null",
    "/dev/kvm": "kvm",
    "/dev/net/tun": "tun",
    "/dev/vhost-net": "vhost-net",
    "/dev/vhost-vsock": "vhost-vsock",
}


def kind_of(target: str, *, device: bool = False, directory: bool = False) -> str:
    """What a descriptor is, by what it leads to. device, directory: what stat(2) says of it."""
    if named := _NAMED.get(target):
        return named
    if target.startswith("anon_inode:kvm-vcpu"):
        return "kvm-vcpu"
    for prefix, kind in (("socket:", "socket"), ("pipe:", "pipe"), ("/memfd:", "memfd"), ("pidfd:", "pidfd")):
        if target.startswith(prefix):
            return kind
    if target.startswith("/dev/tap"):
        return "tun"
    if target.startswith("anon_inode:"):
        return "other"
    if target.partition(":")[0] in NAMESPACES:
        return "namespace"
    if directory:
        return "directory"
    return "device" if device else "file"


def count(kinds: Iterable[str]) -> dict[str, int]:
    """How many descriptors there are of each kind, by name."""
    found: dict[str, int] = {}
    for kind in sorted(kinds):
        found[kind] = found.get(kind, 0) + 1
    return found
