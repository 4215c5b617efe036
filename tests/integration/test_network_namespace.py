"""A pod's network in real namespaces: attached by the program, set up by the agent, gone without a trace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kata_runtime.network import guest
from network_bed import GuestStandIn, PodNetwork, carries

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("ip") or not shutil.which("tc"), reason="needs iproute2 (ip and tc)"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[PodNetwork]:
    with closing(PodNetwork(tmp_path)) as made:
        yield made


def connect(bed: PodNetwork, model: str = "tcfilter", queues: int = 1) -> GuestStandIn:
    """Attach the pod's network, and configure a stand-in for the guest's kernel with it."""
    attached = bed.attach(model, queues=queues)
    stand_in = GuestStandIn(attached)
    stand_in.configure(guest.describe(attached.plan))
    return stand_in


class TestTcfilter:
    def test_the_guest_has_the_pods_addresses_and_reaches_its_node(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64", mtu=1400)
        with closing(connect(bed)) as stand_in:
            (eth0,) = (link for link in stand_in.namespace.state()["links"] if link["ifname"] == "eth0")
            (pods,) = (link for link in bed.pod.state()["links"] if link["ifname"] == "eth0")
            assert (eth0["mtu"], eth0["address"]) == (1400, pods["address"])
            assert {(a["local"], a["prefixlen"]) for a in eth0["addr_info"]} == {
                (a["local"], a["prefixlen"]) for a in pods["addr_info"]
            }
            for address in ("10.9.0.1", "fd00:9::1"):
                assert carries(stand_in.namespace, bed.node, address)
            for address in ("10.9.0.2", "fd00:9::2"):
                assert carries(bed.node, stand_in.namespace, address)

    def test_no_address_of_the_guest_is_tentative(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "fd00:9::2/64")
        with closing(connect(bed)) as stand_in:
            assert "tentative" not in stand_in.namespace.ip("-6", "address", "show", "dev", "eth0")

    def test_the_largest_frame_passes(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", mtu=9000)
        bed.node.ip("link", "set", "cni0", "mtu", "9000")
        with closing(connect(bed)) as stand_in:
            assert carries(stand_in.namespace, bed.node, "10.9.0.1", 9000 - 28)
            assert not carries(stand_in.namespace, bed.node, "10.9.0.1", 9000 - 27)

    def test_nothing_is_left(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64")
        bed.wire("net1", "10.9.0.3/24", default="")
        before = bed.pod.state()
        with closing(connect(bed)) as stand_in:
            assert bed.pod.state() != before
            assert carries(stand_in.namespace, bed.node, "10.9.0.1")
        bed.detach()
        assert bed.pod.state() == before
        bed.detach()
        assert bed.pod.state() == before

    def test_persistent_taps_too(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        assert bed.attach(named=True).queues == ((),)
        assert "tap0_kata" in bed.pod.ip("link", "show")
        bed.detach()
        assert bed.pod.state() == before

    def test_the_devices_queues(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        attached = bed.attach(queues=3)
        try:
            assert [len(fds) for fds in attached.queues] == [3]
            assert "numqueues 3" in bed.pod.ip("-d", "link", "show", "tap0_kata")
        finally:
            for fd in attached.queues[0]:
                os.close(fd)

    def test_the_namespaces_own_stack_is_silent_on_the_tap(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64")
        attached = bed.attach()
        ((queue,),) = attached.queues
        try:
            assert not bed.pod.ip("address", "show", "dev", "tap0_kata").count("inet")
            with pytest.raises(BlockingIOError):
                os.read(queue, 1 << 16)
        finally:
            os.close(queue)
