"""A container with a network of CNI's bridge plugin, on each driver but QEMU: `make test-rig`.

See `driver_configuration` for the programs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import driver_configuration
from cni_pod import (
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

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(900)]


@pytest.mark.parametrize("subject", driver_configuration.ALL)
def test_a_container_has_cnis_network(node: Node, cni: CniPod, guest_image: Path, subject: str) -> None:
    path = driver_configuration.write(subject, node, guest_image)
    before = cni.namespace.state()
    with node.running("sh", "-c", SERVER, options=(*options(cni), "--runtime-config-path", path)) as client:
        node.until(lambda: client.output == "up\n", "its output")

        def inside(*command: str) -> str:
            return node.ctr("task", "exec", "--exec-id", node.new_id(), client.container, *command).stdout

        check_reach(cni, inside)
        assert not [line for line in node.log().splitlines() if "network differs" in line]
        compare_by_command(client.container, cni)
        forward_ports(cni)
        node.ctr("task", "kill", "--signal", "SIGKILL", client.container)
        client.wait()
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, cni.namespace.state()) == []
    assert holders(cni.namespace) == []
