"""Container metrics: from the agent's messages to containerd's.

The cgroup v1 shape is used, as upstream does: every containerd understands it, whatever the host's cgroups.
Source: containerd/cgroups, cgroup1/stats/metrics.proto.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any

from kata_agent.protos import agent_pb2
from kata_runtime.containerd_api import metrics_pb2


def encode(stats: agent_pb2.StatsContainerResponse) -> Any:
    """The metrics of a container, packed for a StatsResponse."""
    metrics = to_metrics(stats)
    return Any(type_url=metrics.DESCRIPTOR.full_name, value=metrics.SerializeToString())


def to_metrics(stats: agent_pb2.StatsContainerResponse) -> metrics_pb2.Metrics:
    """The agent's statistics as containerd's metrics; CPU in nanoseconds, memory in bytes."""
    cgroup = stats.cgroup_stats
    usage, throttling = cgroup.cpu_stats.cpu_usage, cgroup.cpu_stats.throttling_data
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
        usage=_entry(memory.usage),
        swap=_entry(memory.swap_usage),
        kernel=_entry(memory.kernel_usage),
    )
    # The detailed counters have the same names on both sides, where the guest's kernel knows them.
    known = metrics_pb2.MemoryStat.DESCRIPTOR.fields_by_name
    for name, value in memory.stats.items():
        if name in known and known[name].message_type is None:
            setattr(result, name, value)
    # containerd computes the working set as usage less total_inactive_file.
    for name in ("inactive_file", "active_file", "inactive_anon", "active_anon"):
        if name in memory.stats and not getattr(result, f"total_{name}"):
            setattr(result, f"total_{name}", memory.stats[name])
    return result


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
