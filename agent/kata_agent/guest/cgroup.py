"""Control groups (version 2): where a container's is, what it has used, and who is in it."""

from __future__ import annotations

import errno
import os
import re

from kata_agent.guest.errors import InvalidRequestError
from kata_agent.protos import agent_pb2

ROOT = "/sys/fs/cgroup"
_AGENT_LEAF = "kata-agent"
_UNLIMITED = (1 << 64) - 1
_BLOCK_FIELDS = (
    ("rbytes", "io_service_bytes_recursive", "Read"),
    ("wbytes", "io_service_bytes_recursive", "Write"),
    ("rios", "io_serviced_recursive", "Read"),
    ("wios", "io_serviced_recursive", "Write"),
)


def prepare(root: str = ROOT) -> None:
    """At boot: give containers all controllers, and move the agent out of the root group."""
    with open(f"{root}/cgroup.controllers", encoding="ascii") as file:
        controllers = file.read().split()
    leaf = f"{root}/{_AGENT_LEAF}"
    os.makedirs(leaf, exist_ok=True)
    _write(f"{leaf}/cgroup.procs", "0")
    for controller in controllers:
        _write(f"{root}/cgroup.subtree_control", f"+{controller}")


def container_path(requested: str, cid: str) -> str:
    """The path below the cgroup root for what the OCI spec asks, in either of its two forms.

    "/a/b" stays; systemd's "a-b.slice:prefix:name" becomes "/a.slice/a-b.slice/prefix-name.scope", as systemd
    itself would place it; nothing becomes "/CID".

    Raises:
        InvalidRequestError: the path would leave the hierarchy, or hit the agent's own group.
    """
    path = requested or f"/{cid}"
    if path.count(":") == 2 and "/" not in path:
        path = _systemd_path(*path.split(":"))
    path = "/" + path.strip("/")
    parts = path[1:].split("/")
    if any(part in ("", ".", "..") for part in parts) or parts[0] == _AGENT_LEAF or "\0" in path:
        raise InvalidRequestError(f"cgroups path {requested!r} is not a plain path for a container")
    return path


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


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
