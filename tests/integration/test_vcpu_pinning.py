"""Virtual CPUs on CPUs of the host: by a sealed broker, and in a pod whose containers name them."""

from __future__ import annotations

import base64
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import broker_cgroup
from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from growing import end, update
from kata_agent.ttrpc.status import RpcError
from kata_hypervisor.seccomp import seal
from kata_runtime.broker import cgroups
from patience import PATIENCE
from shim_harness import Lab
from shim_pod import Pod
from thread_cpus import cpus_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this host has one CPU: none is told from all"),
]

# A process with threads of these names, which live until it is killed.
THREADS = """
import sys, threading
def live(name):
    with open("/proc/thread-self/comm", "w") as file:
        file.write(name)
    threading.Event().wait()
for name in sys.argv[1:]:
    threading.Thread(target=live, args=(name,)).start()
"""


NOBODY = ["/usr/bin/setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
"""As the pod's user, without capabilities, as every VMM."""
Seen = tuple[str, dict[str, str]]


def do(channel: socket.socket, op: str, **arguments: object) -> Any:
    reply = ask(channel, op, **arguments)
    assert "result" in reply, reply
    return reply["result"]


def confine(channel: socket.socket, features: list[str]) -> dict[str, Any]:
    """Ask the broker at the other end of a channel to confine itself, as the shim does."""
    broker = int.from_bytes(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
    code = seal.build_broker(features, "enforce", broker).code
    return ask(channel, "confine_broker", features=features, code=base64.b64encode(code).decode())


def groups() -> list[str]:
    """The groups of single threads that there are on this host."""
    roots = [Path(hierarchy.mountpoint) for hierarchy in cgroups.hierarchies()]
    return [str(path) for root in roots for path in root.glob("**/vcpu[0-9]*")]


# -- the broker --------------------------------------------------------------------------------------------


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


def play(bed: Bed, names: list[str], asked: list[list[int]], *, pinning: bool = True) -> list[Seen]:
    """Ask a sealed broker for CPUs, several times, for a process like a VMM with threads of these names.

    Returns what is so before, and after each of them: why it was not done, and where the threads are.
    """

    def act(channel: socket.socket) -> list[Seen]:
        do(channel, "prepare", cgroup=f"/{broker_cgroup.NAME}/pinned", pinning=pinning)
        argv = [*NOBODY, "/usr/bin/python3", "-c", THREADS, *names]
        optional = dict.fromkeys(("environment", "gate", "seccomp", "privileges"))
        pid = do(channel, "spawn", name="qemu", argv=argv, fds=[], **optional)["pid"]
        deadline = time.monotonic() + PATIENCE
        while not cpus_of(pid).keys() >= {*names}:
            assert time.monotonic() < deadline, "it has no such threads"
            time.sleep(0.05)
        assert confine(channel, []) == {"id": 1, "result": {"lacking": ""}}
        seen: list[Seen] = [("", cpus_of(pid))]
        for cpus in asked:
            answer = ask(channel, "pin_vcpus", cpus=cpus)
            seen.append((answer.get("error", {}).get("message", ""), cpus_of(pid)))
        return seen

    shim = Shim(bed, act, namespace=True)
    shim.kill()
    wait_for_end(shim.broker)
    assert groups() == []
    return [(why, found) for why, found in shim.result]


@pytest.mark.rig  # for its cgroups of version 2
def test_a_sealed_broker_keeps_each_on_its_cpu_and_lets_go(bed: Bed) -> None:
    names = ["CPU 0/KVM", "CPU 1/KVM", "IO mon_iothread"]
    (_, before), *seen = play(bed, names, [[1, 0], [0, 1], [0, 4000], [0], [], [1, 0]])
    there, back = ({**before, "CPU 0/KVM": one, "CPU 1/KVM": other} for one, other in ("10", "01"))
    assert [found for _, found in seen] == [there, back, back, back, before, there]
    assert [why[:60] for why, _ in seen] == [
        *("", ""),
        "the cgroup of the pod does not have the CPU 4000 of the host",
        "1 CPUs of the host are named, and the VMM has 2 threads that",
        *("", ""),
    ]


def test_a_thread_that_is_several_virtual_cpus_is_kept_nowhere(bed: Bed) -> None:
    (_, before), (why, found) = play(bed, ["CPU 0/KVM", "ALL CPUs/TCG"], [[0, 1]])
    assert found == before
    assert "the VMM has 1 threads that by their names are one virtual CPU each" in why


def test_a_sandbox_that_is_not_configured_so_keeps_none(bed: Bed) -> None:
    (_, before), *seen = play(bed, ["CPU 0/KVM"], [[], [0]], pinning=False)
    assert seen == [("pin_vcpus: enable_vcpus_pinning is not set for this sandbox", before)] * 2


# -- a pod -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def pod(lab: Lab) -> AsyncIterator[Pod]:
    """A pod with two virtual CPUs."""
    values = {"enable_vcpus_pinning": True, "default_vcpus": 2, "overhead_vcpus": 0.0}
    async with Pod.running(lab, lab.configure("pinned", **values)) as pod:
        yield pod


def vcpus(pod: Pod) -> list[str]:
    """The CPUs of the host that each virtual CPU may run on."""
    (pid,) = pod.pids("qemu")
    return [cpus for name, cpus in sorted(cpus_of(pid).items()) if name.startswith("CPU ")]


async def confinement(pod: Pod) -> str:
    """What kata-ctl confinement prints of a pod."""
    command = [str(Path(sys.executable).parent / "kata-ctl"), "confinement", pod.shim.id]
    return (await anyio.run_process(command, check=False)).stdout.decode()


@pytest.mark.anyio
async def test_containers_name_the_cpus_and_what_names_too_few_or_none_lets_go(pod: Pod) -> None:
    anywhere = vcpus(pod)
    assert len(anywhere) == 2
    one = await pod.start_container("sleep", "1000", linux={"resources": {"cpu": {"cpus": "0"}}})
    assert vcpus(pod) == anywhere
    two = await pod.start_container("sleep", "1000", linux={"resources": {"cpu": {"cpus": "1"}}})
    assert vcpus(pod) == ["0", "1"]
    assert (await pod.exec("nproc", container=two)).text == "1\n"
    shown = r"runs on +CPUs [0-9,-]+ of the host; CPU 0/(KVM|TCG) on 0; CPU 1/(KVM|TCG) on 1\n"
    assert re.search(shown, await confinement(pod))

    await update(two, {"cpu": {"cpus": "0"}})
    assert vcpus(pod) == anywhere
    await update(two, {"cpu": {"cpus": "0-1"}})
    assert vcpus(pod) == ["0", "1"]

    await end(two)
    assert vcpus(pod) == anywhere
    with pytest.raises(RpcError, match="the cgroup of the pod does not have the CPU 4000 of the host"):
        await pod.create("true", linux={"resources": {"cpu": {"cpus": "4000"}}})
    assert vcpus(pod) == anywhere
    await end(one)
    assert groups() == []
