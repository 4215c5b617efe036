"""What VMMs with a REST interface do with the network of a pod: the real programs, with a guest of any KVM.

KATA_TEST_FIRECRACKER, KATA_TEST_JAILER and KATA_TEST_CLOUD_HYPERVISOR name them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker_bed import Bed
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.firecracker import Firecracker
from kata_hypervisor import registry
from kata_hypervisor.contract import Hypervisor, NetTap, UnikernelSpec, VmSpec
from kata_hypervisor.firecracker.unikernel import FirecrackerUnikernel
from kata_runtime.broker.client import Broker
from kata_runtime.network.plan import TCFILTER
from kata_runtime.resource import network
from network_bed import PodNetwork
from tiny_guest import SPIN
from tiny_guest import kernel as tiny_kernel
from unikernel import build_bare

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

VARIABLES = {
    "clh": {"path": "KATA_TEST_CLOUD_HYPERVISOR"},
    "firecracker": {"path": "KATA_TEST_FIRECRACKER"},
    "firecracker-jailed": {"path": "KATA_TEST_FIRECRACKER", "jailer_path": "KATA_TEST_JAILER"},
}


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[PodNetwork]:
    with closing(PodNetwork(tmp_path)) as made:
        made.wire("eth0", "10.9.0.2/24", mtu=1400)
        made.wire("net1", "10.9.0.3/24", default="")
        yield made


def machine_of(subject: str, kernel: Path, broker: Broker) -> Hypervisor:
    values: dict[str, Any] = {"kernel": kernel}
    for key, variable in VARIABLES[subject].items():
        if not os.environ.get(variable):
            pytest.skip(f"{variable} names no program")
        values[key] = os.environ[variable]
    if subject == "clh":
        return registry.create("clh", CloudHypervisor(shared_fs="none", **values), broker)
    return registry.create("firecracker", Firecracker(**values), broker)


def carriers(pod: PodNetwork) -> list[bool]:
    """Of each tap, whether somebody has it open."""
    return ["LOWER_UP" in pod.pod.ip("link", "show", f"tap{number}_kata") for number in range(2)]


@pytest.mark.parametrize("subject", VARIABLES)
async def test_it_opens_the_pods_taps(bed: Bed, broker: Broker, pod: PodNetwork, subject: str) -> None:
    kernel = bed.root / "kernel"
    kernel.write_bytes(tiny_kernel(SPIN, pvh=True))
    machine = machine_of(subject, kernel, broker)
    before = pod.pod.state()
    namespaces = [{"type": "network", "path": str(pod.pod.path)}]
    await network.learn(broker, {"linux": {"namespaces": namespaces}}, outside=False)
    named = not machine.capabilities.tap_descriptors
    attached = await network.attach(broker, TCFILTER, named=named)
    try:
        assert carriers(pod) == [not named] * 2
        assert [tap.mtu for tap in attached.taps] == [1400, 1500]
        await machine.prepare(VmSpec("pod", bed.directory, 1, 128, kernel, taps=attached.taps))
    finally:
        attached.close()
        for listener in attached.listeners:
            listener.close()
    await machine.run()
    assert carriers(pod) == [True] * 2
    vmm = machine.processes[0].child.pid
    assert os.stat(f"/proc/{vmm}/ns/net").st_ino == pod.pod.path.stat().st_ino
    await machine.verify_confinement()
    await machine.stop()
    assert await broker.close() == []
    assert pod.pod.state() == before


async def test_a_unikernel_has_the_pods_tap(bed: Bed, broker: Broker, pod: PodNetwork) -> None:
    path = os.environ.get("KATA_TEST_FIRECRACKER") or pytest.skip("KATA_TEST_FIRECRACKER names no program")
    pod.pod.ip("link", "delete", "net1")
    before = pod.pod.state()
    namespaces = [{"type": "network", "path": str(pod.pod.path)}]
    await network.learn(broker, {"linux": {"namespaces": namespaces}}, outside=False)
    attached = await network.attach(broker, TCFILTER, named=True, forward=False)
    (tap,) = attached.taps
    net = NetTap(-1, bytes.fromhex(tap.mac.replace(":", "")), tap.mtu, tap.name)
    values: dict[str, Any] = {"path": path, "kernel": ""}
    monitor = FirecrackerUnikernel(Firecracker(**values), broker)
    ours, theirs = socket.socketpair()
    with ours, theirs, build_bare(bed.root).open("rb") as file:
        output = theirs.fileno()
        await monitor.prepare(
            UnikernelSpec("pod", bed.directory, 64, "/app", file.fileno(), output, "spin", net=net)
        )
        await monitor.run()
        assert "LOWER_UP" in pod.pod.ip("link", "show", tap.name)
        await monitor.stop()
    assert await broker.close() == []
    assert pod.pod.state() == before
