"""Control groups (version 2): where a container's is, what it has used, and who is in it.

All containers are below one group, whose limit leaves the agent and the kernel the memory that they need: a
pod that wants more loses a process of its own, where a guest without memory would stand still.
"""

from __future__ import annotations

import errno
import os
import re

from kata_agent.guest.errors import InvalidRequestError
from kata_agent.protos import agent_pb2

ROOT = "/sys/fs/cgroup"
_AGENT_LEAF = "kata-agent"
_CONTAINERS = "containers"
_PAGE = 1 << 12
_FREE = 4 << 20  # bytes that the kernel keeps free, and a 1024th of the guest's memory
_RESERVE = 16 << 20  # bytes for what the agent starts, and a 256th of the guest's memory
_KERNELS_PART = 32  # of memory that comes later: a 64th is for the kernel's table of its pages
_UNLIMITED = (1 << 64) - 1
_BLOCK_FIELDS = (
    ("rbytes", "io_service_bytes_recursive", "Read"),
    ("wbytes", "io_service_bytes_recursive", "Write"),
    ("rios", "io_serviced_recursive", "Read"),
    ("wios", "io_serviced_recursive", "Write"),
)


def prepare(root: str = ROOT, proc: str = "/proc") -> None:
    """At boot: give containers all controllers and most of the memory, and the agent a group of its own."""
    with open(f"{root}/cgroup.controllers", encoding="ascii") as file:
        controllers = file.read().split()
    leaf, containers = f"{root}/{_AGENT_LEAF}", f"{root}/{_CONTAINERS}"
    for directory in (leaf, containers):
        os.makedirs(directory, exist_ok=True)
    _write(f"{leaf}/cgroup.procs", "0")
    for parent in (root, containers):
        for controller in controllers:
            _write(f"{parent}/cgroup.subtree_control", f"+{controller}")
    if "memory" in controllers:
        _write(f"{leaf}/memory.min", "max")
        _write(f"{containers}/memory.max", str(_memory_of_containers(proc)))


class ContainersMemory:
    """How much memory all containers may use together: it follows that of a guest that grows and shrinks.

    Made once the groups are prepared, when the guest has the memory that it booted with.
    """

    def __init__(self, root: str = ROOT, proc: str = "/proc") -> None:
        self._path = f"{root}/{_CONTAINERS}/memory.max"
        self._proc = proc
        self._at_boot = _meminfo(proc, "MemTotal")
        text = _read_if_there(self._path).strip()
        self._limit = int(text) if text.isdecimal() else None  # without the controller there is none

    def follow(self) -> None:
        """Let containers have what was plugged in since the boot, less what the kernel needs for it."""
        if self._limit is not None:
            plugged = _keep_free(self._proc) - self._at_boot
            limit = self._limit + plugged - max(plugged, 0) // _KERNELS_PART
            _write(self._path, str(max(limit // _PAGE * _PAGE, _PAGE)))


def _memory_of_containers(proc: str) -> int:
    """How many bytes all containers may use together, of what is free at boot."""
    total = _keep_free(proc)
    available = _meminfo(proc, "MemAvailable") - _RESERVE - total // 256
    return max(available // _PAGE * _PAGE, _PAGE)


def _keep_free(proc: str) -> int:
    """Have the kernel keep little free, and return how much memory there is, in bytes.

    By itself it would keep free for huge pages what a small guest needs, anew whenever memory is added.
    """
    total = _meminfo(proc, "MemTotal")
    _write(f"{proc}/sys/vm/min_free_kbytes", str((_FREE + total // 1024) >> 10))
    return total


def _meminfo(proc: str, name: str) -> int:
    """A line of /proc/meminfo, in bytes."""
    match = re.search(rf"^{name}: *(\d+) kB$", _read(f"{proc}/meminfo"), re.MULTILINE)
    assert match is not None  # every kernel has these
    return int(match[1]) << 10


def check_memory(limit: int, root: str = ROOT) -> None:
    """See that a container can have as much memory as its limit says, in bytes; 0 and less is no limit.

    Raises:
        InvalidRequestError: the guest has less.
    """
    text = _read_if_there(f"{root}/{_CONTAINERS}/memory.max").strip()
    if limit > 0 and text.isdecimal() and limit > int(text):
        raise InvalidRequestError(
            f"the memory limit of {limit >> 20} MiB does not fit into the guest, which has "
            f"{int(text) >> 20} MiB for its containers: give its machine "
            f"{_more(limit - int(text))} MiB more, by the pod's memory limit where that sizes "
            "the machine, by overhead_memory, or by default_memory"
        )


def _more(missing: int) -> int:
    """By how many MiB a guest must grow to have so many more bytes: a part of each is the kernel's."""
    return -(-missing * 16 // 15 >> 20)


def container_path(requested: str, cid: str) -> str:
    """The path below the cgroup root for what the OCI spec asks, in either of its two forms.

    It is below the group of all containers: there "/a/b" stays; systemd's "a-b.slice:prefix:name" becomes
    "/a.slice/a-b.slice/prefix-name.scope", as systemd itself would place it; nothing becomes "/CID".

    Raises:
        InvalidRequestError: the path would leave the hierarchy.
    """
    path = requested or f"/{cid}"
    if path.count(":") == 2 and "/" not in path:
        path = _systemd_path(*path.split(":"))
    path = "/" + path.strip("/")
    parts = path[1:].split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise InvalidRequestError(f"cgroups path {requested!r} is not a plain path for a container")
    return f"/{_CONTAINERS}{path}"


def _systemd_path(slice_name: str, prefix: str, name: str) -> str:
    stem = (slice_name or "system.slice").removesuffix(".slice")
    parts = [] if stem == "-" else stem.split("-")
    slices = ["-".join(parts[: count + 1]) + ".slice" for count in range(len(parts))]
    unit = f"{prefix}-{name}" if prefix else name
    return "/".join([*slices, unit if unit.endswith((".slice", ".scope")) else f"{unit}.scope"])


class Cgroup:
    """One group, which need not exist."""

    def __init__(self, path: str, root: str = ROOT) -> None:
        self.directory = f"{root}{path}"

    def kill(self) -> bool:
        """Kill every process of the group and of those below it; False if the group does not exist."""
        try:
            _write(f"{self.directory}/cgroup.kill", "1")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise
        return True

    def processes(self) -> list[int]:
        """The pids in the group and below; empty if it does not exist."""
        pids: list[int] = []
        for directory, _, files in os.walk(self.directory):
            if "cgroup.procs" in files:
                pids += [int(pid) for pid in _read(f"{directory}/cgroup.procs").split()]
        return pids

    def memory_kills(self) -> int:
        """How many of its processes were killed for a memory limit."""
        return self._table("memory.events").get("oom_kill", 0)

    def remove(self) -> None:
        """Remove the group and those below it, if they are there and empty."""
        for directory, _, _ in os.walk(self.directory, topdown=False):
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY):
                    raise

    def stats(self) -> agent_pb2.CgroupStats:
        """What the group has used; files of controllers that are off count as zero."""
        stats = agent_pb2.CgroupStats()
        self._cpu(stats.cpu_stats)
        self._memory(stats.memory_stats)
        stats.pids_stats.current = self._number("pids.current")
        stats.pids_stats.limit = self._number("pids.max")
        self._io(stats.blkio_stats)
        self._hugetlb(stats)
        return stats

    def _cpu(self, stats: agent_pb2.CpuStats) -> None:
        table = self._table("cpu.stat")
        stats.cpu_usage.total_usage = table.get("usage_usec", 0) * 1000
        stats.cpu_usage.usage_in_kernelmode = table.get("system_usec", 0) * 1000
        stats.cpu_usage.usage_in_usermode = table.get("user_usec", 0) * 1000
        stats.throttling_data.periods = table.get("nr_periods", 0)
        stats.throttling_data.throttled_periods = table.get("nr_throttled", 0)
        stats.throttling_data.throttled_time = table.get("throttled_usec", 0) * 1000

    def _memory(self, stats: agent_pb2.MemoryStats) -> None:
        table = self._table("memory.stat")
        stats.cache = table.get("file", 0)
        stats.use_hierarchy = True
        stats.usage.usage = self._number("memory.current")
        stats.usage.max_usage = self._number("memory.peak")
        stats.usage.limit = self._number("memory.max")
        stats.usage.failcnt = self._table("memory.events").get("max", 0)
        stats.swap_usage.usage = self._number("memory.swap.current")
        stats.swap_usage.limit = self._number("memory.swap.max")
        stats.kernel_usage.usage = table.get("kernel", 0)
        stats.stats.update(table)
        stats.stats["oom_kill"] = self.memory_kills()

    def _io(self, stats: agent_pb2.BlkioStats) -> None:
        for line in self._text("io.stat").splitlines():
            match = re.fullmatch(r"(\d+):(\d+)((?: \w+=\d+)*)", line.strip())
            if match is None:
                continue  # "8:0" alone, or a line of io.latency's making: nothing to count
            major, minor = int(match[1]), int(match[2])
            values = dict(pair.split("=") for pair in match[3].split())
            for field, entries, operation in _BLOCK_FIELDS:
                if field in values:
                    getattr(stats, entries).add(
                        major=major, minor=minor, op=operation, value=int(values[field])
                    )

    def _hugetlb(self, stats: agent_pb2.CgroupStats) -> None:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return
        for name in names:
            if match := re.fullmatch(r"hugetlb\.(\w+)\.current", name):
                entry = stats.hugetlb_stats[match[1]]
                entry.usage = self._number(name)
                entry.failcnt = self._table(f"hugetlb.{match[1]}.events").get("max", 0)

    def _text(self, name: str) -> str:
        try:
            return _read(f"{self.directory}/{name}")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                return ""
            raise

    def _number(self, name: str) -> int:
        text = self._text(name).strip()
        return _UNLIMITED if text == "max" else int(text or 0)

    def _table(self, name: str) -> dict[str, int]:
        lines = (line.split() for line in self._text(name).splitlines())
        return {fields[0]: int(fields[1]) for fields in lines if len(fields) == 2 and fields[1].isdecimal()}


def network_stats(text: str) -> list[agent_pb2.NetworkStats]:
    """The counters of all interfaces, from the text of /proc/net/dev (proc(5))."""
    stats = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = [int(word) for word in rest.split()]
        if len(numbers) < 12:
            continue
        stats.append(
            agent_pb2.NetworkStats(
                name=name.strip(),
                rx_bytes=numbers[0],
                rx_packets=numbers[1],
                rx_errors=numbers[2],
                rx_dropped=numbers[3],
                tx_bytes=numbers[8],
                tx_packets=numbers[9],
                tx_errors=numbers[10],
                tx_dropped=numbers[11],
            )
        )
    return stats


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


def _read_if_there(path: str) -> str:
    try:
        return _read(path)
    except FileNotFoundError:  # no such controller
        return ""


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
