"""What moves a guest's packets with QEMU, the host's kernel (vhost-net) or QEMU itself: `make test-rig`."""

from __future__ import annotations

import pytest

from cni_pod import GATEWAYS, CniPod, differences, holders, options
from confinement_reports import report_of
from held_files import held_files
from kata_hypervisor.privileges import VHOST_NET
from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.ctl import confinement_page
from node import Node

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(900)]


@pytest.mark.parametrize(("queues", "disabled"), [(1, False), (2, False), (1, True)])
def test_qemu_holds_vhost_net_for_each_pair_of_queues(
    node: Node, cni: CniPod, queues: int, disabled: bool
) -> None:
    if not VHOST_NET.exists():
        pytest.skip(f"needs {VHOST_NET}: load vhost_net")
    path = node.configuration(
        "vhost", network_queues=queues, default_vcpus=queues, disable_vhost_net=disabled
    )
    before = cni.namespace.state()
    script = f"ping -c 3 -W 60 {GATEWAYS[0]} && exec sleep 3600"
    chosen = ("--runtime-config-path", path)
    with node.running("sh", "-c", script, options=(*options(cni), *chosen)) as client:
        node.until(lambda: " packet loss" in client.output, "its ping")
        assert " 0% packet loss" in client.output
        vmm = node.pids(client.container)["qemu"]
        held = held_files(vmm).count(str(VHOST_NET))
        assert held == (0 if disabled else queues)
        # Where the kernel runs it as a thread of QEMU's, the kernel's worker is as confined as the others.
        assert [thread.tid for thread in read_threads(vmm) if not thread.confined] == []
        assert confinement_page.differences(report_of(client.container)) == []
        node.ctr("task", "kill", "--signal", "SIGKILL", client.container)
        client.wait()
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, cni.namespace.state()) == []
    assert holders(cni.namespace) == []
