"""What a guest under TCG has of virtualization: nothing, or what QEMU emulates, as the configuration says.

With a KVM, a guest of every driver has none: test_kvm_containers.py (with the counterexample),
test_rest_containers.py and test_dragonball_containers.py.
"""

from __future__ import annotations

import pytest

from kata_hypervisor.kvm.probe import probe_kvm
from node import FOREVER, Node, Pod

pytestmark = [pytest.mark.integration]


@pytest.fixture(autouse=True)
def emulated() -> None:
    if probe_kvm().runs_unmodified_guests:
        pytest.skip("this host's KVM is used: see test_kvm_containers.py")


def test_under_tcg_the_guest_has_no_virtualization_of_its_own(node: Node, pod: Pod) -> None:
    assert node.nested_virtualization(pod.sandbox) == 0


def test_a_guest_that_may_have_it_sees_what_qemu_emulates(node: Node) -> None:
    path = node.configuration("nested", disable_nested_virtualization=False)
    with node.running(*FOREVER, options=("--runtime-config-path", path)) as client:
        assert node.nested_virtualization(client.container) == 1
