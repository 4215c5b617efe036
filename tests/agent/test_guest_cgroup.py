"""Paths and counters of control groups, on trees of files that look like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.guest.cgroup import Cgroup, container_path, network_stats, prepare
from kata_agent.guest.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("requested", "path"),
    [
        ("", "/cid"),
        ("/default/x", "/default/x"),
        ("kata/x/", "/kata/x"),
        ("system.slice:kata:x", "/system.slice/kata-x.scope"),
        ("a-b-c.slice:kata:x", "/a.slice/a-b.slice/a-b-c.slice/kata-x.scope"),
        (":kata:x", "/system.slice/kata-x.scope"),
        ("-.slice::x", "/x.scope"),
    ],
)
def test_container_path(requested: str, path: str) -> None:
    assert container_path(requested, "cid") == path


@pytest.mark.parametrize("requested", ["/../x", "/a/./b", "/a//b", "/", "/kata-agent", "kata-agent/x", "a\0"])
def test_container_path_that_leaves(requested: str) -> None:
    with pytest.raises(InvalidRequestError):
        container_path(requested, "cid")


@given(st.text(max_size=60))
def test_container_path_stays_below_the_root(requested: str) -> None:
    try:
        path = container_path(requested, "cid")
    except InvalidRequestError:
        return
    assert path.startswith("/")
    assert not {"", ".", ".."} & set(path[1:].split("/"))


def test_stats(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_throttled 2\nthrottled_usec 7\n",
        "memory.current": "4096\n",
        "memory.max": "max\n",
        "memory.peak": "8192\n",
        "memory.swap.current": "1\n",
        "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
        "memory.stat": "anon 100\nfile 200\nkernel 300\n",
        "pids.current": "5\n",
        "pids.max": "100\n",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16\n",
        "hugetlb.2MB.current": "2097152\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    stats = Cgroup("", str(tmp_path)).stats()
    assert stats.cpu_stats.cpu_usage.total_usage == 1_500_000
    assert stats.cpu_stats.throttling_data.throttled_time == 7000
    assert stats.memory_stats.cache == 200
    assert stats.memory_stats.usage.usage == 4096
    assert stats.memory_stats.usage.max_usage == 8192
    assert stats.memory_stats.usage.limit == (1 << 64) - 1
    assert stats.memory_stats.usage.failcnt == 3
    assert dict(stats.memory_stats.stats) == {"anon": 100, "file": 200, "kernel": 300}
    assert (stats.pids_stats.current, stats.pids_stats.limit) == (5, 100)
    entries = [(e.major, e.minor, e.op, e.value) for e in stats.blkio_stats.io_service_bytes_recursive]
    assert entries == [(8, 0, "Read", 10), (8, 0, "Write", 20)]
    assert stats.hugetlb_stats["2MB"].usage == 2097152


def test_stats_of_a_group_that_is_gone(tmp_path: Path) -> None:
    cgroup = Cgroup("/gone", str(tmp_path))
    assert cgroup.stats().cpu_stats.cpu_usage.total_usage == 0
    assert cgroup.processes() == []
    assert cgroup.kill() is False
    cgroup.remove()


def test_prepare_enables_each_controller(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "cgroup.subtree_control").touch()
    (tmp_path / "kata-agent").mkdir()
    (tmp_path / "kata-agent" / "cgroup.procs").touch()
    prepare(str(tmp_path))
    assert (tmp_path / "kata-agent" / "cgroup.procs").read_text() == "0"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"  # the last of two writes


def test_network_stats() -> None:
    text = (
        "Inter-|   Receive      |  Transmit\n"
        " face |bytes packets |bytes packets\n"
        "    lo:  100  2 0 0 0 0 0 0  100 2 0 0 0 0 0 0\n"
        "  eth0:1000 20 3 4 0 0 0 0 2000 40 5 6 0 0 0 0\n"
    )
    lo, eth0 = network_stats(text)
    assert lo.name == "lo"
    assert (eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped) == (1000, 20, 3, 4)
    assert (eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped) == (2000, 40, 5, 6)
