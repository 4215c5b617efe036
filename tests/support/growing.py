"""A pod whose machine grows: its settings, what is asked of it, and what it must have then."""

from __future__ import annotations

import json
from typing import Any

from kata_runtime.containerd_api.metrics_pb2 import Metrics
from shim_pod import Pod
from shim_process import Process
from shipped_configuration import Value

MIB = 1 << 20
BASE, MOST = 256, 1024
SETTINGS: dict[str, Value] = {
    "static_sandbox_resource_mgmt": False,
    "default_vcpus": 1,
    "default_maxvcpus": 2,
    "default_memory": BASE,
    "default_maxmemory": MOST,
}
"""It boots with 1 CPU, and may have 2 and 1 GiB."""
_LOOK = "nproc; sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"


async def size(pod: Pod) -> str:
    """What the runtime says that the machine has."""
    status = await pod.shim.sandbox("SandboxStatus", sandbox_id=pod.shim.id, verbose=True)
    return str(status.info["machine"])


async def machine(pod: Pod) -> tuple[int, int]:
    """Number of CPUs and MiB of memory that the guest has."""
    cpus, kibibytes = (await pod.exec("sh", "-c", _LOOK)).text.split()
    return int(cpus), int(kibibytes) >> 10


def limits(cpus: float, mib: int) -> dict[str, Any]:
    """Limits of a container, as linux.resources has them."""
    return {"cpu": {"quota": int(cpus * 100_000), "period": 100_000}, "memory": {"limit": mib * MIB}}


async def update(process: Process, resources: dict[str, Any]) -> None:
    """Change a container's limits."""
    await process.call("Update", resources={"value": json.dumps(resources).encode()})


async def end(process: Process) -> None:
    """Kill a container, and delete it."""
    await process.kill(9)
    await process.wait()
    await process.delete()


async def check_growth(pod: Pod, *, takes_cpus_away: bool) -> None:
    """See that a machine grows with a container and by an update, and shrinks again.

    takes_cpus_away: whether a CPU that came can go.
    """
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
    assert cpus == (1 if takes_cpus_away else 2)
    assert there < at_boot + 384
    await end(process)
