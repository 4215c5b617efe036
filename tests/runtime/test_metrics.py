"""The agent's statistics as containerd reads them."""

from __future__ import annotations

from kata_agent.protos import agent_pb2
from kata_runtime.containerd_api import metrics_pb2
from kata_runtime.shim import metrics

STATS = agent_pb2.StatsContainerResponse(
    cgroup_stats=agent_pb2.CgroupStats(
        cpu_stats=agent_pb2.CpuStats(
            cpu_usage=agent_pb2.CpuUsage(
                total_usage=9, usage_in_kernelmode=4, usage_in_usermode=5, percpu_usage=[9]
            ),
            throttling_data=agent_pb2.ThrottlingData(periods=3, throttled_periods=2, throttled_time=1),
        ),
        memory_stats=agent_pb2.MemoryStats(
            cache=7,
            usage=agent_pb2.MemoryData(usage=100, max_usage=120, limit=200, failcnt=1),
            stats={"inactive_file": 11, "rss": 12, "unheard_of": 13},
        ),
        pids_stats=agent_pb2.PidsStats(current=2, limit=10),
        blkio_stats=agent_pb2.BlkioStats(
            io_serviced_recursive=[agent_pb2.BlkioStatsEntry(major=8, minor=1, op="Read", value=5)]
        ),
    ),
    network_stats=[agent_pb2.NetworkStats(name="eth0", rx_bytes=1, tx_bytes=2)],
)


def test_every_group_arrives() -> None:
    result = metrics.to_metrics(STATS)
    assert (result.cpu.usage.total, result.cpu.usage.kernel, result.cpu.usage.user) == (9, 4, 5)
    assert result.cpu.throttling.throttled_periods == 2
    assert (result.memory.usage.usage, result.memory.usage.limit, result.memory.usage.max) == (100, 200, 120)
    assert (result.memory.cache, result.memory.rss, result.memory.inactive_file) == (7, 12, 11)
    assert (result.pids.current, result.pids.limit) == (2, 10)
    assert result.blkio.io_serviced_recursive[0].value == 5
    assert (result.network[0].name, result.network[0].tx_bytes) == ("eth0", 2)


def test_the_working_set_can_be_computed() -> None:
    assert metrics.to_metrics(STATS).memory.total_inactive_file == 11


def test_the_packed_form_names_containerds_type() -> None:
    packed = metrics.encode(STATS)
    assert packed.type_url == "io.containerd.cgroups.v1.Metrics"
    assert metrics_pb2.Metrics.FromString(packed.value) == metrics.to_metrics(STATS)
