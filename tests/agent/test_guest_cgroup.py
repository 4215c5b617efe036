"""Paths and counters of control groups, on trees of files that look like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.guest.cgroup import (
    Cgroup,
    ContainersMemory,
    check_memory,
    container_path,
    network_stats,
    prepare,
)
from kata_agent.guest.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("requested", "path"),
    [
        ("", "/containers/cid"),
        ("/default/x", "/containers/default/x"),
        ("kata/x/", "/containers/kata/x"),
        ("system.slice:kata:x", "/containers/system.slice/kata-x.scope"),
        ("a-b-c.slice:kata:x", "/containers/a.slice/a-b.slice/a-b-c.slice/kata-x.scope"),
        (":kata:x", "/containers/system.slice/kata-x.scope"),
        ("-.slice::x", "/containers/x.scope"),
    ],
)
def test_container_path(requested: str, path: str) -> None:
    assert container_path(requested, "cid") == path


@pytest.mark.parametrize("requested", ["/../x", "/a/./b", "/a//b", "/", "a\0"])
def test_container_path_that_leaves(requested: str) -> None:
    with pytest.raises(InvalidRequestError):
        container_path(requested, "cid")


@given(st.text(max_size=60))
def test_container_path_stays_below_the_root(requested: str) -> None:
    try:
        path = container_path(requested, "cid")
    except InvalidRequestError:
        return
    assert path.startswith("/containers/")
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
    assert dict(stats.memory_stats.stats) == {"anon": 100, "file": 200, "kernel": 300, "oom_kill": 1}
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


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """The cgroups of a guest before its boot, and its /proc: 400 MiB of memory, of which 350 are there."""
    for name in ("kata-agent", "containers", "proc/sys/vm"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        *("cgroup.subtree_control", "kata-agent/cgroup.procs", "kata-agent/memory.min"),
        *("containers/cgroup.subtree_control", "containers/memory.max", "proc/sys/vm/min_free_kbytes"),
    ):
        (tmp_path / name).touch()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  409600 kB\nMemFree:  1 kB\nMemAvailable:  358400 kB\n")
    return tmp_path


def boot(guest: Path, controllers: str) -> None:
    (guest / "cgroup.controllers").write_text(controllers)
    prepare(str(guest), str(guest / "proc"))


def test_prepare_enables_each_controller(guest: Path) -> None:
    boot(guest, "cpu pids\n")
    assert (guest / "kata-agent/cgroup.procs").read_text() == "0"
    for parent in (guest, guest / "containers"):
        assert (parent / "cgroup.subtree_control").read_text() == "+pids"  # the last of two writes
    assert (guest / "containers/memory.max").read_text() == ""


def test_prepare_leaves_the_agent_and_the_kernel_their_memory(guest: Path) -> None:
    boot(guest, "memory\n")
    assert (guest / "kata-agent/memory.min").read_text() == "max"
    assert (guest / "proc/sys/vm/min_free_kbytes").read_text() == "4496"
    assert int((guest / "containers/memory.max").read_text()) == (350 << 20) - (16 << 20) - (400 << 12)


def test_containers_get_the_memory_that_comes_later_and_lose_what_goes(guest: Path) -> None:
    boot(guest, "memory\n")
    at_boot = int((guest / "containers/memory.max").read_text())
    memory = ContainersMemory(str(guest), str(guest / "proc"))
    for total, gained in ((400, 0), (656, 248 << 20), (400, 0), (300, -100 << 20)):
        (guest / "proc/sys/vm/min_free_kbytes").write_text("9999")  # the kernel's, where memory has come
        (guest / "proc/meminfo").write_text(f"MemTotal:  {total << 10} kB\nMemAvailable:  1 kB\n")
        memory.follow()
        assert int((guest / "containers/memory.max").read_text()) == at_boot + gained
        assert int((guest / "proc/sys/vm/min_free_kbytes").read_text()) == 4096 + total


def test_without_the_memory_controller_there_is_no_limit_to_follow(guest: Path) -> None:
    boot(guest, "cpu\n")
    ContainersMemory(str(guest), str(guest / "proc")).follow()
    assert (guest / "containers/memory.max").read_text() == ""


def test_a_limit_that_does_not_fit_is_refused_with_what_would_do(guest: Path) -> None:
    root = str(guest)
    check_memory(1 << 40, root)  # without the controller there is nothing to say
    (guest / "containers/memory.max").write_text(f"{300 << 20}\n")
    for limit in (-1, 0, 1, 300 << 20):
        check_memory(limit, root)
    with pytest.raises(InvalidRequestError) as error:
        check_memory(450 << 20, root)
    assert "the memory limit of 450 MiB does not fit into the guest, which has 300 MiB" in str(error.value)
    assert "give its machine 160 MiB more" in str(error.value)


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
