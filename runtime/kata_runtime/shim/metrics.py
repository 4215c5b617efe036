"""Container metrics: from the agent's messages to containerd's.

The cgroup v1 shape is used, as upstream does: every containerd understands it, whatever the host's cgroups.
Source: containerd/cgroups, cgroup1/stats/metrics.proto.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from kata_agent.protos import agent_pb2
from kata_runtime.containerd_api import metrics_pb2

_UNLIMITED = (1 << 64) - 1
_COUNTERS = {
    "rss": ("anon", "rss"),
    "rss_huge": ("anon_thp", "rss_huge"),
    "mapped_file": ("file_mapped", "mapped_file"),
    "dirty": ("file_dirty", "dirty"),
    "writeback": ("file_writeback", "writeback"),
    "pg_fault": ("pgfault",),
    "pg_maj_fault": ("pgmajfault",),
    "inactive_anon": ("inactive_anon",),
    "active_anon": ("active_anon",),
    "inactive_file": ("inactive_file",),
    "active_file": ("active_file",),
    "unevictable": ("unevictable",),
}
"""Fields of MemoryStat, and what memory.stat calls them: in version 2, and where it differs in version 1."""


def encode(metrics: metrics_pb2.Metrics) -> Any:
    """Metrics, packed for an answer."""
    return Any(type_url=metrics.DESCRIPTOR.full_name, value=metrics.SerializeToString())


def total(containers: Sequence[metrics_pb2.Metrics]) -> metrics_pb2.Metrics:
    """What a pod's containers have used together; the network is the pod's, and counted once."""
    result = metrics_pb2.Metrics()
    for metrics in containers:
        _add(result.pids, metrics.pids)
        _add(result.cpu, metrics.cpu)
        _add(result.memory, metrics.memory)
    if containers:
        result.network.extend(containers[-1].network)
    return result


def _add(result: Message, more: Message) -> None:
    """Add the numbers of a message one by one, but for arrays; no sum is over "unlimited"."""
    for field, value in more.ListFields():
        if isinstance(value, int):
            setattr(result, field.name, min(getattr(result, field.name) + value, _UNLIMITED))
        elif isinstance(value, Message):
            _add(getattr(result, field.name), value)


def to_metrics(stats: agent_pb2.StatsContainerResponse) -> metrics_pb2.Metrics:
    """The agent's statistics as containerd's metrics; CPU in nanoseconds, memory in bytes."""
    cgroup = stats.cgroup_stats
    usage, throttling = cgroup.cpu_stats.cpu_usage, cgroup.cpu_stats.throttling_data
    kills = cgroup.memory_stats.stats
    return metrics_pb2.Metrics(
        hugetlb=[
            metrics_pb2.HugetlbStat(
                usage=entry.usage, max=entry.max_usage, failcnt=entry.failcnt, pagesize=size
            )
            for size, entry in cgroup.hugetlb_stats.items()
        ],
        pids=metrics_pb2.PidsStat(current=cgroup.pids_stats.current, limit=cgroup.pids_stats.limit),
        cpu=metrics_pb2.CPUStat(
            usage=metrics_pb2.CPUUsage(
                total=usage.total_usage,
                kernel=usage.usage_in_kernelmode,
                user=usage.usage_in_usermode,
                per_cpu=usage.percpu_usage,
            ),
            throttling=metrics_pb2.Throttle(
                periods=throttling.periods,
                throttled_periods=throttling.throttled_periods,
                throttled_time=throttling.throttled_time,
            ),
        ),
        memory=_memory(cgroup.memory_stats),
        # Only our agent counts them.
        memory_oom_control=(
            metrics_pb2.MemoryOomControl(oom_kill=kills["oom_kill"]) if "oom_kill" in kills else None
        ),
        blkio=_blkio(cgroup.blkio_stats),
        network=[
            metrics_pb2.NetworkStat(
                name=link.name,
                rx_bytes=link.rx_bytes,
                rx_packets=link.rx_packets,
                rx_errors=link.rx_errors,
                rx_dropped=link.rx_dropped,
                tx_bytes=link.tx_bytes,
                tx_packets=link.tx_packets,
                tx_errors=link.tx_errors,
                tx_dropped=link.tx_dropped,
            )
            for link in stats.network_stats
        ],
    )


def _memory(memory: agent_pb2.MemoryStats) -> metrics_pb2.MemoryStat:
    result = metrics_pb2.MemoryStat(
        cache=memory.cache,
        total_cache=memory.cache,
        hierarchical_memory_limit=memory.usage.limit,
        usage=_entry(memory.usage),
        swap=_with_swap(memory),
        kernel=_entry(memory.kernel_usage),
    )
    # What a group counts is of those below it too in a guest, as version 1 says it by another name only.
    for field, names in _COUNTERS.items():
        value = next((memory.stats[name] for name in names if name in memory.stats), 0)
        setattr(result, field, value)
        setattr(result, f"total_{field}", value)
    return result


def _with_swap(memory: agent_pb2.MemoryStats) -> metrics_pb2.MemoryEntry:
    """Memory and swap together, which version 1 counts where version 2 counts swap.

    No sum is over "unlimited": a limit can be that, and a guest can say it of what is used.
    """
    both = (memory.usage, memory.swap_usage)
    return metrics_pb2.MemoryEntry(
        usage=min(sum(data.usage for data in both), _UNLIMITED),
        limit=min(sum(data.limit for data in both), _UNLIMITED),
        max=min(sum(data.max_usage for data in both), _UNLIMITED),
        failcnt=memory.swap_usage.failcnt,
    )


def _entry(data: agent_pb2.MemoryData) -> metrics_pb2.MemoryEntry:
    return metrics_pb2.MemoryEntry(
        limit=data.limit, usage=data.usage, max=data.max_usage, failcnt=data.failcnt
    )


def _blkio(blkio: agent_pb2.BlkioStats) -> metrics_pb2.BlkIOStat:
    result = metrics_pb2.BlkIOStat()
    for field, entries in blkio.ListFields():
        target = getattr(result, field.name)
        for entry in entries:
            target.add(op=entry.op, major=entry.major, minor=entry.minor, value=entry.value)
    return result
