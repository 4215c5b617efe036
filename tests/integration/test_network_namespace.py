"""A pod's network in real namespaces: attached by the program, set up by the agent, gone without a trace."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from forked import in_child
from kata_runtime.network import comparison, exchange, forwarding, guest, namespaces, taps
from kata_runtime.network.errors import NetworkError
from network_bed import (
    CHANGES,
    GuestStandIn,
    PodNetwork,
    attach_and_detach,
    attach_with_kernel,
    carries,
    fail_at,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("ip") or not shutil.which("tc"), reason="needs iproute2 (ip and tc)"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]

POD_USER = 2_000_000
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[PodNetwork]:
    with closing(PodNetwork(tmp_path)) as made:
        yield made


def close(queues: Iterable[Iterable[int]]) -> None:
    for fds in queues:
        for fd in fds:
            os.close(fd)


def open_as(user: int, name: str) -> str:
    """Become a user, and open a tap by its name, as Firecracker does; returns the error's name."""
    tun = os.open(taps.TUN, os.O_RDWR)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    try:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


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

    def test_taps_that_one_user_opens_by_name_too(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        assert bed.attach(named=True, owner=POD_USER).queues == ((),)
        assert bed.pod.call(lambda: open_as(POD_USER, "tap0_kata")) == ""
        assert bed.pod.call(lambda: open_as(POD_USER + 1, "tap0_kata")) == "EPERM"
        assert bed.pod.call(lambda: open_as(POD_USER, "tap1_kata")) == "EPERM"
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

    def test_no_qdisc_of_the_tap_drops_by_timestamps(self, bed: PodNetwork) -> None:
        """A host's default may be fq, which drops what a redirect has left with another clock's time."""
        bed.wire("eth0", "10.9.0.2/24")
        attached = bed.attach()
        try:
            shown = bed.pod.run("tc", "qdisc", "show", "dev", "tap0_kata").stdout
            assert sorted(line.split()[1] for line in shown.splitlines()) == ["ingress", "noqueue"]
        finally:
            close(attached.queues)

    def test_the_namespaces_own_stack_is_silent_on_the_tap(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64")
        attached = bed.attach()
        ((queue,),) = attached.queues
        try:
            assert not bed.pod.ip("address", "show", "dev", "tap0_kata").count("inet")
            address = bed.pod.run("cat", "/sys/class/net/tap0_kata/address").stdout.strip()
            own = bytes.fromhex(address.replace(":", ""))
            # What the node says is passed on to the guest.
            assert own not in {frame[HEADER + 6 : HEADER + 12] for frame in frames_of(queue)}
        finally:
            os.close(queue)


HEADER = taps.VNET_HEADER


def frames_of(queue: int) -> Iterator[bytes]:
    """The frames that wait in a tap's queue."""
    with suppress(BlockingIOError):
        while True:
            yield os.read(queue, 1 << 16)


def move_in(bed: PodNetwork, name: str, address: str) -> None:
    """Make a link of the node's the pod's eth0."""
    bed.node.ip("link", "set", name, "netns", bed.pod.name)
    bed.pod.ip("link", "set", name, "name", "eth0")
    bed.pod.ip("address", "add", address, "dev", "eth0")
    bed.pod.ip("link", "set", "eth0", "up")


def settle(bed: PodNetwork, name: str, address: str) -> None:
    """Give a link of the node's an address."""
    bed.node.ip("address", "add", address, "dev", name)
    bed.node.ip("link", "set", name, "up")


def need_kind(kind: str) -> None:
    """Skip where the kernel makes no links of a kind."""
    found = Path("/proc/modules").read_text() if Path("/proc/modules").exists() else ""
    module = {"vlan": "8021q"}.get(kind, kind)
    if not re.search(rf"^{module} ", found, re.MULTILINE):
        pytest.skip(f"the kernel has no module {module}, or it is not loaded")


def check_passing(bed: PodNetwork, inner: str, outer: str) -> None:
    """Packets pass between the guest and the node, and nothing is left."""
    bed.settle(bed.pod)
    bed.settle(bed.node)
    before = bed.pod.state()
    with closing(connect(bed)) as stand_in:
        assert carries(stand_in.namespace, bed.node, outer)
        assert carries(bed.node, stand_in.namespace, inner)
    bed.detach()
    assert bed.pod.state() == before


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

    @pytest.mark.rig
    def test_a_vlan(self, bed: PodNetwork) -> None:
        need_kind("vlan")
        bed.node.ip("link", "add", "trunk0", "type", "veth", "peer", "name", "trunk1")
        for name, trunk in (("inner", "trunk0"), ("outer", "trunk1")):
            bed.node.ip("link", "set", trunk, "up")
            bed.node.ip("link", "add", "link", trunk, "name", name, "type", "vlan", "id", "7")
        move_in(bed, "inner", "10.8.0.2/24")
        settle(bed, "outer", "10.8.0.5/24")
        check_passing(bed, "10.8.0.2", "10.8.0.5")

    @pytest.mark.rig
    def test_an_ipvlan(self, bed: PodNetwork) -> None:
        need_kind("ipvlan")
        bed.node.ip("link", "add", "iv0", "type", "veth", "peer", "name", "iv1")
        bed.node.ip("link", "set", "iv0", "up")
        settle(bed, "iv1", "10.8.0.5/24")
        bed.node.ip("link", "add", "link", "iv0", "name", "inner", "type", "ipvlan", "mode", "l2")
        move_in(bed, "inner", "10.8.0.2/24")
        check_passing(bed, "10.8.0.2", "10.8.0.5")

    def test_macvtap(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64", mtu=1400)
        bed.pod.ip(
            "route", "add", "10.77.0.0/16", "via", "10.9.0.1", "dev", "eth0", "metric", "5", "mtu", "1300"
        )
        for address in ("10.9.0.77", "fd00:9::77"):
            neighbour = (address, "lladdr", "02:00:00:00:00:77", "dev", "eth0", "nud", "permanent")
            bed.pod.ip("neigh", "add", *neighbour)
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


def kill_at(bed: PodNetwork, model: str, change: int) -> None:
    """Attach in a child that is killed at a change. Raises StopIteration where there are not so many."""
    try:
        fail_at(bed, model, change, lambda: os.kill(os.getpid(), signal.SIGKILL))
    except ChildProcessError as error:
        assert f"ended with -{signal.SIGKILL:d}" in str(error)
    else:
        raise StopIteration


def vanishing_at(change: int) -> Callable[[Any], None]:
    """Let eth0 vanish before a change is made."""
    left = iter([*[False] * change, True])

    def spoil(kernel: Any) -> None:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def method(*arguments: Any) -> Any:
                if next(left, False):
                    subprocess.run(["ip", "link", "delete", "eth0"], check=True)
                return original(*arguments)

            return method

        for name in CHANGES:
            setattr(kernel, name, wrap(getattr(kernel, name)))

    return spoil


class TestFailures:
    @pytest.mark.timeout(600)
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
        assert step == {"tcfilter": 19, "macvtap": 13}[model]

    @pytest.mark.timeout(600)  # it attaches a dozen times
    @pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
    def test_killed_wherever(self, bed: PodNetwork, model: str) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        changes = 0
        with suppress(StopIteration):
            while True:
                kill_at(bed, model, changes)
                bed.detach()
                bed.settle(bed.pod)
                assert bed.pod.state() == before, f"after a kill at change {changes}"
                changes += 1
        assert changes >= 5
        bed.settle(bed.pod)
        assert bed.pod.state() == before

    def test_nothing_is_attached_that_cannot_be_recorded(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()

        def spoil(_kernel: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # of this child

        sentence = attach_with_kernel(bed, spoil)
        assert sentence.startswith("cannot record what is attached: 100 of ")
        assert bed.pod.state() == before
        assert not bed.record.read_bytes()

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

    def test_one_that_attaches_at_the_same_time_keeps_its_network(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        ours, during = bed.record, Path(f"{bed.record}.state")

        def spoil(_kernel: Any) -> None:  # when this one has read the namespace
            bed.record = ours.with_suffix(".other")
            bed.attach(named=True, forward=True)
            while "state DOWN" not in bed.pod.ip("link", "show", "dev", "tap0_kata"):
                threading.Event().wait(0.05)  # the kernel says later that nobody has it open
            during.write_text(repr(bed.pod.state()))

        sentence = attach_with_kernel(bed, spoil)
        assert sentence.startswith("cannot open the tap tap0_kata: it exists already: another sandbox")
        assert repr(bed.pod.state()) == during.read_text()
        bed.record = ours.with_suffix(".other")
        bed.detach()

    def test_one_that_only_forwards_keeps_its_rule(self, bed: PodNetwork) -> None:
        close(bed.attach(forward=True).queues)
        before = bed.pod.state()
        bed.record = bed.record.with_suffix(".other")
        with pytest.raises(NetworkError, match="cannot redirect the pod's loopback: it exists already"):
            bed.attach(forward=True)
        assert bed.pod.state() == before

    def test_a_macvtap_that_another_makes_meanwhile_stays(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")

        def spoil(_kernel: Any) -> None:
            bed.pod.ip("link", "add", "link", "eth0", "name", "tap0_kata", "type", "macvtap")

        sentence = attach_with_kernel(bed, spoil, "macvtap")
        assert sentence.startswith("cannot make the macvtap tap0_kata: it exists already")
        assert "tap0_kata" in [link["ifname"] for link in bed.pod.state()["links"]]

    def test_a_macvtap_of_the_same_index_elsewhere_stays_its_own(self, bed: PodNetwork) -> None:
        """Two pods that start at the same time may draw one index, and /dev/tapN is of one of them."""
        bed.wire("eth0", "10.9.0.2/24")
        bed.node.ip("link", "add", "below", "type", "veth", "peer", "name", "beside")
        before = bed.pod.state()

        def spoil(kernel: Any) -> None:
            make = kernel.add_macvtap

            def make_second(name: str, parent: int, index: int, mtu: int) -> bool:
                other = ("link", "below", "name", "other", "index", str(index), "type", "macvtap")
                bed.node.ip("link", "add", *other)
                return bool(make(name, parent, index, mtu))

            kernel.add_macvtap = make_second

        sentence = attach_with_kernel(bed, spoil, "macvtap")
        assert sentence.startswith("cannot open /dev/tap")
        assert sentence.endswith("of the macvtap tap0_kata: it is another's, in another namespace")
        assert "other" in bed.node.ip("link", "show", "type", "macvtap")
        bed.settle(bed.pod)
        assert bed.pod.state() == before

    def test_the_largest_and_smallest_mtu(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24", mtu=65535)
        with pytest.raises(NetworkError, match="its MTU is 65535, and a tap's is at most 65521"):
            bed.attach()
        bed.pod.ip("link", "set", "eth0", "mtu", "1280")
        with closing(connect(bed)) as stand_in:
            assert carries(stand_in.namespace, bed.node, "10.9.0.1", 1280 - 28)

    @pytest.mark.parametrize("method", ["add_ingress", "judge", "redirect"])
    def test_a_kernel_without_traffic_control(self, bed: PodNetwork, method: str) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()

        def spoil(kernel: Any) -> None:
            def make_fail(original: Any) -> Any:
                def fail(*arguments: Any, **fields: Any) -> Any:
                    kernel._traffic = lambda *_a, **_k: refuse()
                    try:
                        return original(*arguments, **fields)
                    finally:
                        del kernel._traffic

                return fail

            def refuse() -> None:
                raise OSError(errno.ENOENT, "Specified kind was not found")  # as the kernel says it

            setattr(kernel, method, make_fail(getattr(kernel, method)))

        sentence = attach_with_kernel(bed, spoil)
        assert "Specified kind was not found: the host's kernel lacks traffic control; load" in sentence
        assert "sch_ingress, cls_bpf, cls_u32 and act_mirred" in sentence
        assert bed.pod.state() == before

    @pytest.mark.timeout(600)  # it attaches a dozen times
    @pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
    def test_an_interface_that_vanishes_wherever(self, bed: PodNetwork, model: str) -> None:
        changes, named = 0, 0
        while True:
            bed.wire("eth0", "10.9.0.2/24")
            sentence = attach_with_kernel(bed, vanishing_at(changes), model)
            bed.detach()
            left = [link["ifname"] for link in bed.pod.state()["links"]]
            if "eth0" in left:
                break
            assert left == ["lo"], f"after change {changes}: {sentence}"
            assert not sentence or "the interface has gone meanwhile" in sentence, f"change {changes}"
            named += bool(sentence)
            changes += 1
        assert changes >= 5
        assert named >= changes - 1, "only what vanishes with the last change is nobody's error"

    def test_two_interfaces_with_one_mac(self, bed: PodNetwork) -> None:
        mac = "02:00:00:00:00:09"
        bed.wire("eth0", "10.9.0.2/24", mac=mac)
        bed.wire("net1", "10.9.0.3/24", default="")
        bed.pod.ip("link", "set", "net1", "down")  # or its own address would be found to be another's
        bed.pod.ip("link", "set", "net1", "address", mac)
        before = bed.pod.state()
        with pytest.raises(NetworkError, match=f"the same MAC address as net1, {mac}, by which the guest"):
            bed.attach()
        assert bed.pod.state() == before

    def test_no_tun_device(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        with pytest.raises(NetworkError, match="cannot open the tap kata_probe: /dev/net/tun: No such file"):
            bed.attach_with(
                prefix=["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
            )
        assert bed.pod.state() == before

    def test_a_program_that_is_killed_before_it_answers(self, bed: PodNetwork) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours, pytest.raises(NetworkError, match="cannot speak to the network program"):
            exchange.ask(ours, exchange.attach("tcfilter"))


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

    def test_without_loopback_the_pod_has_its_network(self, bed: PodNetwork) -> None:
        bed.wire("eth0", "10.9.0.2/24")
        bed.pod.ip("address", "flush", "dev", "lo")
        attached = bed.attach(forward=True)
        close(attached.queues)
        assert attached.listeners == ()
        (warning,) = attached.plan.warnings
        assert warning.startswith("ports of the pod cannot be forwarded: cannot listen on 127.0.0.1")

    @pytest.mark.parametrize("number", [errno.EPROTONOSUPPORT, errno.EOPNOTSUPP])
    def test_a_kernel_without_nftables(
        self, bed: PodNetwork, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        class Absent:
            def __init__(self, _family: int) -> None:
                raise OSError(number, os.strerror(number))

        bed.wire("eth0", "10.9.0.2/24")
        before = bed.pod.state()
        monkeypatch.setattr(forwarding, "NetlinkSocket", Absent)
        (warning,) = attach_and_detach(bed)
        assert warning.startswith("ports of the pod cannot be forwarded: cannot redirect the pod's loopback")
        monkeypatch.undo()
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

    def test_a_fifo_holds_up_nobody(self, tmp_path: Path) -> None:
        path = tmp_path / "fifo"
        os.mkfifo(path)

        def opened() -> None:
            signal.alarm(10)  # which ends this child
            with pytest.raises(NetworkError, match="fifo is no network namespace"):
                namespaces.open_pods(str(path))

        in_child(opened)
