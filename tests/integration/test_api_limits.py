"""Limits in a specification, and in an update: each seen from inside, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kata_agent.ttrpc.status import RpcError
from kata_runtime.containerd_api.metrics_pb2 import Metrics
from shim_pod import Pod

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def seen(pod: Pod, script: str, **resources: Any) -> str:
    """What a script writes in a container with these limits."""
    finished = await pod.run("sh", "-c", script, linux={"resources": resources})
    assert finished.status == 0, finished
    return finished.text


async def test_a_quota_holds(shim_pod: Pod) -> None:
    script = "timeout 3 sh -c 'while :; do :; done' 2>/dev/null; cat /sys/fs/cgroup/cpu.stat"
    text = await seen(shim_pod, script, cpu={"quota": 10_000, "period": 100_000})
    stat = {name: int(value) for name, value in map(str.split, text.splitlines())}
    assert stat["nr_throttled"] > 0
    assert stat["usage_usec"] < 0.2 * 100_000 * stat["nr_periods"]


async def test_shares_swap_and_unified_keys_are_the_guests_cgroups(shim_pod: Pod) -> None:
    memory = {"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20}
    names = ("cpu.weight", "memory.max", "memory.swap.max", "memory.low", "memory.high")
    script = f"cd /sys/fs/cgroup; cat {' '.join(names)}"
    text = await seen(
        shim_pod, script, cpu={"shares": 2048}, memory=memory, unified={"memory.high": str(48 << 20)}
    )
    assert text.split() == ["79", str(64 << 20), "0", str(32 << 20), str(48 << 20)]


async def test_the_number_of_processes_holds(shim_pod: Pod) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done 2>/dev/null; cat /sys/fs/cgroup/pids.current"
    finished = await shim_pod.run("sh", "-c", script, linux={"resources": {"pids": {"limit": 5}}})
    assert finished.status != 0
    assert (await seen(shim_pod, "cat /sys/fs/cgroup/pids.max", pids={"limit": 5})).split() == ["5"]


async def test_a_cpuset_is_of_as_many_of_the_guests_cpus(shim_pod: Pod) -> None:
    """It has one: a set of more is all of them."""
    assert await seen(shim_pod, "nproc", cpu={"cpus": "6-7", "mems": "1"}) == "1\n"


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]},
            "huge pages of 2MB, of which the guest",
        ),
        ({"cpu": {"cpus": "3-1"}}, "the cpuset '3-1' is no list of CPUs"),
        ({"memory": {"limit": 64 << 30}}, "the memory limit of 65536 MiB does not fit into the guest"),
        ({"memory": {"limit": 256 << 10}}, "a memory limit of 262144 bytes"),
        ({"devices": [{"allow": True, "type": "b", "major": 8, "access": "r"}]}, "the device b 8:"),
    ],
)
async def test_what_cannot_hold_is_refused(shim_pod: Pod, resources: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RpcError) as error:
        await shim_pod.create("true", linux={"resources": resources})
    assert sentence in error.value.message


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"cpu": {"quota": 200_000, "period": 100_000}}, "2 CPUs are more than its machine has, 1"),
        ({"memory": {"limit": 64 << 30}}, "the memory limit of 65536 MiB does not fit into the guest"),
        ({"unified": {"memory.high": "1"}}, "linux.resources.unified are set when a container is created"),
    ],
)
async def test_an_update_beyond_the_machine_is_refused_and_changes_nothing(
    shim_pod: Pod, resources: dict[str, Any], sentence: str
) -> None:
    limits = {"cpu": {"quota": 50_000, "period": 100_000}, "memory": {"limit": 64 << 20}}
    process = await shim_pod.start_container("sleep", "1000", linux={"resources": limits})
    with pytest.raises(RpcError) as error:
        await process.call("Update", resources={"value": json.dumps(resources).encode()})
    assert sentence in error.value.message
    look = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.high"
    finished = await shim_pod.exec("sh", "-c", look, container=process)
    assert finished.text == f"50000 100000\n{64 << 20}\nmax\n"
    await process.kill(9)
    await process.wait()
    await process.delete()


async def test_metrics_are_what_the_guests_cgroup_says(shim_pod: Pod) -> None:
    """Within 5 %, of a container that has 40 MiB in memory and counts no more."""
    script = "dd if=/dev/zero of=/dev/shm/kept bs=1M count=40 2>/dev/null; exec sleep 1000"
    process = await shim_pod.start_container(
        "sh", "-c", script, linux={"resources": {"memory": {"limit": 96 << 20}}}
    )
    look = "until [ $(stat -c %s /dev/shm/kept) = 41943040 ]; do sleep 0.1; done; cd /sys/fs/cgroup"
    read = "cat memory.current memory.stat cpu.stat"
    finished = await shim_pod.exec("sh", "-c", f"{look}; {read}", container=process)
    current, *lines = finished.text.splitlines()
    told = {name: int(value) for name, value in map(str.split, lines)}
    packed = (await process.call("Stats")).stats
    found = Metrics.FromString(packed.value)
    assert found.memory.usage.usage == pytest.approx(int(current), rel=0.05)
    assert found.memory.total_cache == pytest.approx(told["file"], rel=0.05)
    assert found.memory.total_inactive_file == pytest.approx(told["inactive_file"], rel=0.05, abs=1 << 20)
    assert found.memory.total_rss == pytest.approx(told["anon"], abs=1 << 20)
    assert found.memory.hierarchical_memory_limit == 96 << 20
    assert found.cpu.usage.total >= told["usage_usec"] * 1000
    assert {link.name for link in found.network} >= {"lo"}
    await process.kill(9)
    await process.wait()
    await process.delete()
