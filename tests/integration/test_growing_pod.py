"""A machine grows with its containers and their limits, stays confined, and gives back what it can."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kata_agent.ttrpc.status import RpcError
from kata_runtime.containerd_api.metrics_pb2 import Metrics
from shim_harness import Lab
from shim_pod import Pod
from shim_process import Process

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

MIB = 1 << 20
LOOK = "nproc; sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"
BASE, MOST = 256, 1024
TOO_MUCH = "the memory limits of its pod come to 800 MiB, and its machine has room for 722"


@pytest.fixture(scope="module")
async def pod(lab: Lab) -> AsyncIterator[Pod]:
    """A pod whose machine boots with 1 CPU, and may have 2 and 1 GiB."""
    path = lab.configure(
        "growing",
        static_sandbox_resource_mgmt=False,
        default_vcpus=1,
        default_maxvcpus=2,
        default_memory=BASE,
        default_maxmemory=MOST,
    )
    async with Pod.running(lab, path) as pod:
        yield pod


async def size(pod: Pod) -> str:
    """What the runtime says that the machine has."""
    status = await pod.shim.sandbox("SandboxStatus", sandbox_id=pod.shim.id, verbose=True)
    return str(status.info["machine"])


async def machine(pod: Pod) -> tuple[int, int]:
    """Number of CPUs and MiB of memory that the guest has."""
    cpus, kibibytes = (await pod.exec("sh", "-c", LOOK)).text.split()
    return int(cpus), int(kibibytes) >> 10


def limits(cpus: float, mib: int) -> dict[str, Any]:
    return {"cpu": {"quota": int(cpus * 100_000), "period": 100_000}, "memory": {"limit": mib * MIB}}


async def update(process: Process, resources: dict[str, Any]) -> None:
    await process.call("Update", resources={"value": json.dumps(resources).encode()})


async def end(process: Process) -> None:
    await process.kill(9)
    await process.wait()
    await process.delete()


async def test_it_grows_with_a_container_and_by_an_update_and_shrinks_again(pod: Pod) -> None:
    _, at_boot = await machine(pod)
    process = await pod.start_container("sleep", "1000", linux={"resources": limits(0.5, 100)})
    assert await machine(pod) == (2, at_boot + 128)  # 100 and a 16th, in steps of 128

    await update(process, limits(1, 300))
    assert await machine(pod) == (2, at_boot + 384)
    look = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max"
    assert (await pod.exec("sh", "-c", look, container=process)).text == f"100000 100000\n{300 * MIB}\n"
    stats = Metrics.FromString((await process.call("Stats")).stats.value)
    assert stats.memory.usage.limit == 300 * MIB
    assert await size(pod) == f"2 vCPUs and {BASE + 384} MiB"

    # It has what it was given, of memory that was not there at boot; and no more.
    for mib, status in ((280, 0), (320, 137)):
        use = f"dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null; echo $?"
        assert (await pod.exec("sh", "-c", use, container=process)).text == f"{status}\n"

    await update(process, {"cpu": {"quota": -1}, "memory": {"limit": 64 * MIB}})
    cpus, there = await machine(pod)
    emulated = 'accelerator = "tcg"' in pod.shim.lab.configuration.read_text()
    assert cpus == (2 if emulated else 1)  # TCG has no place for a CPU that comes again
    assert there < at_boot + 384
    await end(process)


async def test_a_limit_beyond_what_it_may_have_is_refused_with_what_would_do(pod: Pod) -> None:
    with pytest.raises(RpcError) as error:
        await pod.create("true", linux={"resources": limits(1, 800)})
    assert TOO_MUCH in str(error.value)
    process = await pod.start_container("sleep", "1000", linux={"resources": limits(0.5, 64)})
    before = await machine(pod)
    for wanted, sentence in (
        (limits(0.5, 800), TOO_MUCH),
        (limits(3, 64), "3 CPUs are more than its machine may have, 2"),
    ):
        with pytest.raises(RpcError) as error:
            await update(process, wanted)
        assert sentence in str(error.value)
    look = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max"
    assert (await pod.exec("sh", "-c", look, container=process)).text == f"50000 100000\n{64 * MIB}\n"
    assert await machine(pod) == before
    await end(process)
