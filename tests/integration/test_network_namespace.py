"""A pod's network in real namespaces: attached by the program, set up by the agent, gone without a trace."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kata_runtime.network import comparison, exchange, forwarding, guest, namespaces
from kata_runtime.network.errors import NetworkError
from network_bed import GuestStandIn, PodNetwork, carries, fail_at

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


def close(queues: Iterable[Iterable[int]]) -> None:
    for fds in queues:
        for fd in fds:
            os.close(fd)


def dial(bed: PodNetwork, address: str, port: int) -> socket.socket:
    """A connection that is made in the pod's namespace, as containerd makes it for port-forwarding."""
    made = bed.pod.call_with_descriptor(lambda: socket.create_connection((address, port), timeout=5).detach())
    return socket.socket(fileno=made)


def connect(bed: PodNetwork, model: str = "tcfilter", queues: int = 1) -> GuestStandIn:
    """Attach the pod's network, and configure a stand-in for the guest's kernel with it."""
    attached = bed.attach(model, queues=queues)
    stand_in = GuestStandIn(attached)
    stand_in.configure(guest.describe(attached.plan))
    assert comparison.differences(attached.plan, *stand_in.lists()) == []
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
            close(attached.queues)

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


class TestOtherKinds:
    def test_a_macvlan(self, bed: PodNetwork) -> None:
        bed.node.ip("link", "add", "mv", "link", "cni0", "type", "macvlan", "mode", "bridge")
        bed.node.ip("link", "set", "mv", "netns", bed.pod.name)
        bed.pod.ip("link", "set", "mv", "name", "eth0")
        bed.pod.ip("address", "add", "10.8.0.2/24", "dev", "eth0")
        bed.pod.ip("link", "set", "eth0", "up")
        bed.node.ip("link", "add", "peer", "link", "cni0", "type", "macvlan", "mode", "bridge")
        bed.node.ip("address", "add", "10.8.0.5/24", "dev", "peer")
        bed.node.ip("link", "set", "peer", "up")
        bed.settle(bed.pod)
        before = bed.pod.state()
        with closing(connect(bed)) as stand_in:
            assert carries(stand_in.namespace, bed.node, "10.8.0.5")
        bed.detach()
        assert bed.pod.state() == before

    def test_macvtap(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64", mtu=1400)
        bed.pod.ip(
            "route", "add", "10.77.0.0/16", "via", "10.9.0.1", "dev", "eth0", "metric", "5", "mtu", "1300"
        )
        before = bed.pod.state()
        with closing(connect(bed, "macvtap", queues=2)) as stand_in:
            assert "10.9.0.2" not in bed.pod.ip("address", "show", "dev", "eth0")
            for address in ("10.9.0.1", "fd00:9::1"):
                assert carries(stand_in.namespace, bed.node, address)
            for address in ("10.9.0.2", "fd00:9::2"):
                assert carries(bed.node, stand_in.namespace, address)
        bed.detach()
        bed.settle(bed.pod)
        assert bed.pod.state() == before

    def test_macvtap_by_name_is_refused(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        with pytest.raises(NetworkError, match="a macvtap is opened by its number"):
            bed.attach("macvtap", named=True)
        assert bed.pod.state() == before

    def test_a_tap_of_the_namespace(self, bed: PodNetwork) -> None:
        bed.pod.ip("tuntap", "add", "dev", "pod0", "mode", "tap", "vnet_hdr")
        bed.pod.ip("address", "add", "10.9.0.2/24", "dev", "pod0")
        bed.pod.ip("link", "set", "pod0", "up")
        attached = bed.attach()
        assert [entry.tap for entry in attached.plan.attachments] == ["pod0"]
        ((queue,),) = attached.queues
        assert "LOWER_UP" in bed.pod.ip("link", "show", "dev", "pod0")
        os.close(queue)
        bed.detach()
        state = bed.pod.state()
        assert [link["ifname"] for link in state["links"]] == ["lo", "pod0"]
        assert "ingress" not in state["qdiscs"]


class TestRoutes:
    def test_calicos(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/32", default="")
        bed.pod.ip("route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
        bed.pod.ip("route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
        (mac,) = bed.node.run("cat", "/sys/class/net/cni0/address").stdout.split()
        bed.pod.ip("neigh", "add", "169.254.1.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
        bed.node.ip("route", "add", "10.9.0.2/32", "dev", "cni0")
        with closing(connect(bed)) as stand_in:
            assert f"169.254.1.1 dev eth0 lladdr {mac} PERMANENT" in stand_in.namespace.ip("neigh", "show")
            assert carries(stand_in.namespace, bed.node, "10.9.0.1")

    def test_everything_that_a_route_can_have(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64")
        bed.wire("net1", "10.9.1.2/24", default="")
        routes = (
            (
                "10.70.0.0/16",
                "via",
                "10.9.0.1",
                "dev",
                "eth0",
                "src",
                "10.9.0.2",
                "metric",
                "7",
                "mtu",
                "1300",
            ),
            ("10.71.0.0/16", "via", "192.0.2.1", "dev", "eth0", "onlink"),
            ("10.72.0.0/16", "dev", "net1", "scope", "link"),
            ("default", "via", "10.9.1.1", "dev", "net1", "metric", "100"),
            ("fd77::/32", "via", "fd00:9::1", "dev", "eth0", "metric", "50", "mtu", "1280"),
        )
        for route in routes:
            bed.pod.ip("route", "add", *route)
        with closing(connect(bed)) as stand_in:
            for family in ("-4", "-6"):
                assert sorted(stand_in.namespace.ip(family, "route", "show").splitlines()) == sorted(
                    bed.pod.ip(family, "route", "show").splitlines()
                )

    def test_two_hundred(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        for number in range(200):
            bed.pod.ip("route", "add", f"10.80.{number}.0/24", "via", "10.9.0.1", "dev", "eth0")
        with closing(connect(bed)) as stand_in:
            assert len(stand_in.namespace.ip("-4", "route", "show").splitlines()) == 202


class TestFailures:
    @pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
    def test_nothing_is_left_wherever_it_fails(self, bed: PodNetwork, model: str) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64")
        bed.wire("net1", "10.9.0.3/24", default="")
        before = bed.pod.state()
        step = 0
        while fail_at(bed, model, step):
            bed.settle(bed.pod)
            assert bed.pod.state() == before, f"after a failure of change {step}"
            step += 1
        assert step == {"tcfilter": 14, "macvtap": 13}[model]

    def test_killed_in_the_middle(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        with pytest.raises(ChildProcessError, match=f"ended with -{signal.SIGKILL:d}"):
            fail_at(bed, "tcfilter", 6, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert bed.pod.state() != before
        bed.detach()
        assert bed.pod.state() == before

    def test_a_tap_that_exists_already(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        bed.pod.ip("tuntap", "add", "dev", "tap0_kata", "mode", "tap")
        before = bed.pod.state()
        with pytest.raises(NetworkError, match="there is an interface tap0_kata; another sandbox uses this"):
            bed.attach()
        assert bed.pod.state() == before

    def test_an_unsupported_kind(self, bed: PodNetwork) -> None:
        bed.pod.ip("link", "add", "br0", "type", "bridge")
        bed.pod.ip("address", "add", "10.9.0.2/24", "dev", "br0")
        with pytest.raises(
            NetworkError, match=r"the interface br0 of .* it is of the kind bridge; supported are"
        ):
            bed.attach()

    def test_a_second_attachment(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        close(bed.attach().queues)
        bed.record = bed.record.with_suffix(".other")
        with pytest.raises(
            NetworkError, match="it has an ingress qdisc; another sandbox uses this namespace"
        ):
            bed.attach()

    def test_the_largest_and_smallest_mtu(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", mtu=65535)
        with pytest.raises(NetworkError, match="its MTU is 65535, and a tap's is at most 65521"):
            bed.attach()
        bed.pod.ip("link", "set", "eth0", "mtu", "1280")
        with closing(connect(bed)) as stand_in:
            assert carries(stand_in.namespace, bed.node, "10.9.0.1", 1280 - 28)

    def test_no_tun_device(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        with pytest.raises(NetworkError, match="cannot open the tap tap0_kata: /dev/net/tun: No such file"):
            bed.attach_with(
                prefix=["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
            )
        assert bed.pod.state() == before

    def test_a_program_that_is_killed_before_it_answers(self, bed: PodNetwork) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours, pytest.raises(NetworkError, match="cannot speak to the network program"):
            exchange.attach(ours, "tcfilter")


class TestForwarding:
    def test_every_port_of_loopback_comes_to_the_listeners(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        attached = bed.attach(forward=True)
        assert attached.plan.warnings == ()
        close(attached.queues)
        listeners = [socket.socket(fileno=fd) for fd in attached.listeners]
        for address, port in (("127.0.0.1", 80), ("127.0.0.2", 65535), ("::1", 8080)):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            (listener,) = (sock for sock in listeners if sock.family == family)
            with dial(bed, address, port), listener.accept()[0] as accepted:
                assert forwarding.original_port(accepted) == port
        for sock in listeners:
            sock.close()
        bed.detach()
        assert bed.pod.state() == before


class TestNamespaces:
    def test_the_hosts_is_known_by_whatever_path(self) -> None:
        name = f"kt-host-{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "attach", name, str(os.getpid())], check=True)
        try:
            for path in (f"/run/netns/{name}", "/proc/self/ns/net"):
                with pytest.raises(
                    NetworkError, match=f"cannot use the host's network .*{path} is the host's"
                ):
                    namespaces.open_pods(path)
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=True)

    def test_a_pods(self, bed: PodNetwork) -> None:
        descriptor = namespaces.open_pods(str(bed.pod.path))
        assert namespaces.identity(descriptor) == namespaces.identity(str(bed.pod.path))
        os.close(descriptor)

    @pytest.mark.parametrize(
        ("path", "sentence"),
        [
            (
                "/run/netns/no-such",
                "cannot open the pod's network namespace /run/netns/no-such: No such file",
            ),
            ("/proc/self/ns/uts", "/proc/self/ns/uts is no network namespace"),
            ("/etc/passwd", "/etc/passwd is no network namespace"),
        ],
    )
    def test_what_is_none(self, path: str, sentence: str) -> None:
        with pytest.raises(NetworkError, match=sentence):
            namespaces.open_pods(path)
