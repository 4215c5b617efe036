"""A container with a network of CNI's bridge plugin, on QEMU: what it reaches, and what is left of it."""

from __future__ import annotations

import os

import pytest

from cni_pod import (
    GATEWAYS,
    SERVER,
    CniPod,
    check_reach,
    compare_by_command,
    differences,
    forward_ports,
    holders,
    options,
)
from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]


def test_a_container_has_cnis_network(node: Node, cni: CniPod) -> None:
    before = cni.namespace.state()
    with node.running("sh", "-c", SERVER, options=options(cni)) as client:
        node.until(lambda: client.output == "up\n", "its output")

        def inside(*command: str) -> str:
            return node.ctr("task", "exec", "--exec-id", node.new_id(), client.container, *command).stdout

        check_reach(cni, inside)
        vmm = node.pids(client.container)["qemu"]
        assert os.stat(f"/proc/{vmm}/ns/net").st_ino == os.stat(cni.namespace.path).st_ino
        assert not [line for line in node.log().splitlines() if "network differs" in line]
        compare_by_command(client.container, cni)
        forward_ports(cni)
        node.ctr("task", "kill", "--signal", "SIGKILL", client.container)
        client.wait()
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, cni.namespace.state()) == []
    assert holders(cni.namespace) == []


@pytest.mark.parametrize("role", ["shim", "broker", "qemu"])
def test_a_killed_process_leaves_the_namespace_as_it_was(node: Node, cni: CniPod, role: str) -> None:
    before = cni.namespace.state()
    with node.running("sh", "-c", "echo up; exec sleep 3600", options=options(cni)) as client:
        node.until(lambda: client.output == "up\n", "its output")
        assert cni.namespace.state() != before
        node.kill(client.container, role)
        client.wait()
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, cni.namespace.state()) == []
    assert holders(cni.namespace) == []


def test_the_queues_of_the_guests_device(node: Node, cni: CniPod) -> None:
    path = node.configuration("queues", network_queues=2, default_vcpus=2)
    before = cni.namespace.state()
    script = f"ls /sys/class/net/eth0/queues; ping -c 3 -W 5 {GATEWAYS[0]}"
    result = node.run("sh", "-c", script, options=(*options(cni), "--runtime-config-path", path))
    assert result.returncode == 0, result
    assert {"rx-0", "rx-1", "tx-0", "tx-1"} <= set(result.stdout.split())
    assert " 0% packet loss" in result.stdout
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, cni.namespace.state()) == []


def test_the_hosts_network_is_refused(node: Node) -> None:
    for given in (("--net-host",), ("--with-ns", "network:/proc/self/ns/net")):
        result = node.run("true", options=given)
        assert result.returncode != 0
        assert "cannot use the host's network" in result.stderr


def test_what_cannot_be_attached_is_refused(node: Node, cni: CniPod) -> None:
    cni.namespace.ip("link", "add", "odd", "type", "bridge")
    cni.namespace.ip("address", "add", "10.9.9.9/24", "dev", "odd")
    before = cni.namespace.state()
    result = node.run("true", options=options(cni))
    assert result.returncode != 0
    assert "cannot attach the interface odd" in result.stderr
    assert differences(before, cni.namespace.state()) == []
