"""A pod of two containers by crictl on containerd 2: its volumes, limits and numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import containerd_versions
import cri_settings
from cri_node import GATEWAYS, Cri, require
from patience import PATIENCE
from volume_fixtures import AtomicVolume, mounted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(max(600, 3 * PATIENCE))]

MIB = 1 << 20
SHIM = "shim"
"""A handler whose sandboxes the shim makes itself, without a container of the pause image."""
BURN = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
FILL = "dd if=/dev/zero of=/cache/x bs=1M count=24 2>/dev/null"
PARENT = f"/kt-cri-{os.getpid()}"
"""The pod's cgroup on the host, as a kubelet makes one: its machine is in there."""
OF_SHIM = f"{PARENT}-shim"
"""That of the pod whose sandbox the shim makes."""
GROUP = "d=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); test -e $d/cpu.stat || d=/sys/fs/cgroup"


@pytest.fixture(scope="module")
def cri(tmp_path_factory: pytest.TempPathFactory, guest_image: Path) -> Iterator[Cri]:
    require()
    try:
        further = (cri_settings.runtime(SHIM, sandboxer=SHIM),)
        made = Cri(tmp_path_factory.mktemp("cri"), guest_image, containerd_versions.SECOND, further)
    except containerd_versions.NotAvailableError as error:
        pytest.skip(str(error))
    try:
        yield made
    finally:
        made.bed.close()


class Pod:
    """One container watches a configMap, the other fills an emptyDir in memory and uses a processor."""

    def __init__(self, cri: Cri, kubelet: Path, memory: Path) -> None:
        self.cri = cri
        self.settings = AtomicVolume(kubelet / "volumes/kubernetes.io~configmap/settings")
        self.settings.write({"key": "one\n"})
        mounts: list[dict[str, Any]] = [
            {"container_path": "/cache", "host_path": str(memory)},
            {"container_path": "/settings", "host_path": str(self.settings.path), "readonly": True},
        ]
        file = cri.pod_file("numbers", linux={"cgroup_parent": PARENT})
        self.id = cri.run("runp", file)
        self.reads = cri.start(self.id, file, "reads", "exec sleep 3600", mounts=mounts)
        script = f"{FILL}; {BURN}; touch /cache/done; exec sleep 3600"
        limits = {"resources": {"memory_limit_in_bytes": 96 * MIB}}
        self.works = cri.start(self.id, file, "works", script, mounts=mounts, linux=limits)

    def inside(self, container: str, script: str) -> str:
        """Run a script in a container; returns what it prints."""
        return self.cri.run("exec", container, "sh", "-c", script)

    def numbers(self, container: str, command: str) -> dict[str, int]:
        """What a file of a container's cgroup says, by its first words."""
        lines = self.inside(container, f"{GROUP}; {command}").splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def pod(cri: Cri) -> Iterator[Pod]:
    kubelet = cri.directory / "kubelet"
    with mounted(kubelet / "volumes/kubernetes.io~empty-dir/cache", "size=32m") as memory:
        made = Pod(cri, kubelet, memory)
        yield made
        cri.run("rmp", "-f", made.id)


def test_containers_share_the_volume_in_memory(pod: Pod) -> None:
    pod.cri.bed.node.until(lambda: "done" in pod.inside(pod.reads, "ls /cache"), "the other container's work")
    assert pod.inside(pod.reads, "stat -c %s /cache/x") == str(24 * MIB)
    assert "size=32768k" in pod.inside(pod.reads, "grep ' /cache ' /proc/mounts")
    assert "No space left" in pod.inside(
        pod.reads, "dd if=/dev/zero of=/cache/y bs=1M count=16 2>&1; rm /cache/y"
    )


def test_a_config_map_is_brought_up_to_date(pod: Pod) -> None:
    assert pod.inside(pod.reads, "cat /settings/key") == "one"
    pod.settings.write({"key": "two\n"})
    pod.cri.bed.node.until(
        lambda: pod.inside(pod.reads, "cat /settings/key") == "two", "the configMap's new content"
    )


def test_a_containers_numbers_are_those_of_its_cgroup(pod: Pod) -> None:
    """Between what the cgroup says before and afterwards, and 5 % from either at most."""
    cpu, memory = "cat $d/cpu.stat", "echo current $(cat $d/memory.current); cat $d/memory.stat"
    before = pod.numbers(pod.works, cpu)["usage_usec"], pod.numbers(pod.works, memory)
    (told,) = json.loads(pod.cri.run("stats", "-o", "json", pod.works))["stats"]
    after = pod.numbers(pod.works, cpu)["usage_usec"], pod.numbers(pod.works, memory)
    used = int(told["cpu"]["usageCoreNanoSeconds"]["value"]) / 1000
    assert before[0] * 0.95 <= used <= after[0] * 1.05
    sets = [found["current"] - found["inactive_file"] for found in (before[1], after[1])]
    assert min(sets) * 0.95 <= int(told["memory"]["workingSetBytes"]["value"]) <= max(sets) * 1.05
    assert sets[0] > 24 * MIB


def test_a_pods_numbers_are_those_of_its_machine_and_its_network(pod: Pod) -> None:
    """containerd reads the pod's cgroup on the host, and the counters of the interface in its namespace."""
    pod.inside(pod.reads, f"ping -q -c 30 -i 0.05 -s 1400 {GATEWAYS[0]}")
    counters = "cat /sys/class/net/eth0/statistics/{}_bytes"
    before = {way: int(pod.inside(pod.reads, counters.format(way))) for way in ("rx", "tx")}
    (told,) = json.loads(pod.cri.run("statsp", "-o", "json", "--id", pod.id))["stats"]
    network = told["linux"]["network"]["defaultInterface"]
    assert network["name"] == "eth0"
    for way, number in before.items():
        assert int(network[f"{way}Bytes"]["value"]) == pytest.approx(number, rel=0.05)
    containers = json.loads(pod.cri.run("stats", "-o", "json", "--pod", pod.id))["stats"]
    used = sum(int(one["memory"]["workingSetBytes"]["value"]) for one in containers)
    assert int(told["linux"]["memory"]["workingSetBytes"]["value"]) > used
    # What a guest takes for its own processor's time is more than the host's where that is busy.
    assert int(told["linux"]["cpu"]["usageCoreNanoSeconds"]["value"]) > 0


@pytest.fixture
def of_shim(cri: Cri) -> Iterator[tuple[str, str]]:
    """A pod whose sandbox the shim makes: its id, and its file."""
    limits = {"memory_limit_in_bytes": 96 * MIB, "cpu_period": 100000, "cpu_quota": 150000}
    linux = {"sysctls": {"kernel.shm_rmid_forced": "1"}, "cgroup_parent": OF_SHIM, "resources": limits}
    file = cri.pod_file("of-the-shim", linux=linux, hostname="of-the-shim")
    pod = cri.run("runp", "--runtime", SHIM, file)
    try:
        yield pod, file
    finally:
        cri.run("rmp", "-f", pod)
        cri.bed.node.until(lambda: pod not in cri.bed.node.sandboxes(), "the sandbox's end")


def test_a_pod_whose_sandbox_the_shim_makes(cri: Cri, of_shim: tuple[str, str]) -> None:
    """Its namespace, names, size and sysctls come by CreateSandbox; its status by the sandbox API."""
    pod, file = of_shim
    script = (
        "hostname; cat /proc/sys/kernel/shm_rmid_forced; grep nameserver /etc/resolv.conf; "
        "ip -4 -o address show eth0 | awk '{print $4}'; grep -c ^processor /proc/cpuinfo; exec sleep 3600"
    )
    made = cri.start(pod, file, "inside", script)
    status = json.loads(cri.run("inspectp", pod))["status"]
    assert status["state"] == "SANDBOX_READY"

    def lines() -> list[str]:
        return cri.run("logs", made).splitlines()

    cri.bed.node.until(lambda: len(lines()) == 5, "what the container says")
    name, sysctl, server, address, processors = lines()
    assert (name, sysctl, server) == ("of-the-shim", "1", "nameserver 10.238.7.53")
    assert processors == "2"
    assert address.partition("/")[0] == status["network"]["ip"]
    machine = cri.bed.node.pids(pod)["qemu"]
    assert f"{OF_SHIM}/" in Path(f"/proc/{machine}/cgroup").read_text()
    assert cri.run("exec", "--sync", made, "echo", "answers") == "answers"
    (told,) = json.loads(cri.run("statsp", "-o", "json", "--id", pod))["stats"]
    assert int(told["linux"]["memory"]["workingSetBytes"]["value"]) > 0
    cri.run("stopp", pod)  # codespell:ignore stopp
    assert json.loads(cri.run("inspectp", pod))["status"]["state"] == "SANDBOX_NOTREADY"
