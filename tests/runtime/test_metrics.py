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


def test_processes_killed_for_memory_are_counted_where_the_agent_counts_them() -> None:
    assert not metrics.to_metrics(STATS).HasField("memory_oom_control")
    counted = agent_pb2.StatsContainerResponse()
    for number in (0, 3):
        counted.cgroup_stats.memory_stats.stats["oom_kill"] = number
        assert metrics.to_metrics(counted).HasField("memory_oom_control")
        assert metrics.to_metrics(counted).memory_oom_control.oom_kill == number


def test_the_working_set_can_be_computed() -> None:
    assert metrics.to_metrics(STATS).memory.total_inactive_file == 11


def test_the_packed_form_names_containerds_type() -> None:
    packed = metrics.encode(metrics.to_metrics(STATS))
    assert packed.type_url == "io.containerd.cgroups.v1.Metrics"
    assert metrics_pb2.Metrics.FromString(packed.value) == metrics.to_metrics(STATS)


def test_the_names_of_version_2_become_those_of_version_1() -> None:
    memory = agent_pb2.MemoryStats(
        cache=50,
        usage=agent_pb2.MemoryData(usage=100, limit=400, max_usage=120),
        swap_usage=agent_pb2.MemoryData(usage=30, limit=(1 << 64) - 1),
        stats={"anon": 40, "file_mapped": 8, "pgfault": 70, "pgmajfault": 7, "inactive_file": 20, "file": 50},
    )
    stats = agent_pb2.StatsContainerResponse(cgroup_stats=agent_pb2.CgroupStats(memory_stats=memory))
    found = metrics.to_metrics(stats).memory
    assert (found.total_rss, found.rss, found.total_cache, found.total_mapped_file) == (40, 40, 50, 8)
    assert (found.total_pg_fault, found.total_pg_maj_fault, found.total_inactive_file) == (70, 7, 20)
    assert found.hierarchical_memory_limit == 400
    # Memory and swap together: containerd takes the memory off again.
    assert (found.swap.usage, found.swap.limit) == (130, (1 << 64) - 1)


def test_a_sandbox_is_the_sum_of_its_containers_on_one_network() -> None:
    one = metrics.to_metrics(STATS)
    both = metrics.total([one, one])
    assert (both.cpu.usage.total, both.pids.current, both.memory.usage.usage) == (18, 4, 200)
    assert both.memory.total_inactive_file == 22
    assert [(link.name, link.rx_bytes) for link in both.network] == [("eth0", 1)]
    one.memory.usage.limit = (1 << 64) - 1
    assert metrics.total([one, one]).memory.usage.limit == (1 << 64) - 1
    assert metrics.total([]) == metrics_pb2.Metrics()
