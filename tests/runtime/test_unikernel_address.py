"""What a unikernel is told of its pod's network, in the form of its kind; and what is refused, or named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from socket import AF_INET, AF_INET6

import pytest

from kata_runtime.errors import UnsupportedError
from kata_runtime.network.model import IFA_F_DADFAILED, Address, Link, Route
from kata_runtime.network.plan import TCFILTER, Attachment, Plan
from kata_runtime.unikernel.address import GuestAddress, address_of, warnings_of
from kata_runtime.unikernel.description import COMMAND_LINES, Unikernel

INSIDE = GuestAddress("10.9.0.2", 24, "10.9.0.1")
OUTSIDE = GuestAddress("10.9.0.2", 32, "169.254.1.1")
ALONE = GuestAddress("10.9.0.2", 16)
SIX = GuestAddress("fd00::2", 64, "fd00::1")
V4 = Address("10.9.0.2", 24)


def link(*addresses: Address, name: str = "eth0") -> Link:
    return Link(2, name, "veth", "02:00:00:00:00:02", 1500, 1, addresses or (V4,))


def plan(*links: Link, routes: Iterable[Route] = ()) -> Plan:
    attachments = tuple(Attachment(one, f"tap{number}_kata", TCFILTER) for number, one in enumerate(links))
    return Plan(attachments, tuple(routes))


def default(gateway: str, metric: int = 0) -> Route:
    return Route(AF_INET, "", 2, gateway, metric=metric)


def test_a_pod_without_an_interface() -> None:
    assert address_of(plan()) is None


def test_the_address_and_the_gateway_of_the_best_route() -> None:
    routes = (default("10.9.0.9", 100), default("10.9.0.1"), Route(AF_INET6, "", 2, "fd00::1"))
    assert address_of(plan(link(), routes=routes)) == INSIDE
    assert address_of(plan(link(Address("fd00::2", 64), Address("10.9.0.2", 16)))) == ALONE


def test_one_of_ipv6_where_there_is_no_other() -> None:
    own, given = Address("fe80::2", 64), Address("fd00::2", 64)
    routes = (
        default("10.9.0.1"),
        Route(AF_INET6, "", 2, "fd00::1"),
        Route(AF_INET6, "fd07::/64", 2, "fd00::7"),
    )
    only = plan(link(own, given), routes=routes)
    assert address_of(only) == SIX
    assert list(warnings_of(only)) == [
        "the unikernel is not told the route fd07::/64 by fd00::7: it takes a default route only"
    ]


@pytest.mark.parametrize(
    ("links", "sentence"),
    [
        ((link(), link(name="net1")), "cannot attach net1: a unikernel has one interface, which is eth0"),
        ((link(Address("fe80::2", 64)),), "cannot attach eth0: it has no address that was given to it"),
        ((link(Address("10.9.0.2", 24, flags=IFA_F_DADFAILED)),), "cannot attach eth0: it has no address"),
    ],
)
def test_a_network_that_it_cannot_have_is_refused(links: tuple[Link, ...], sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        address_of(plan(*links))


def test_what_it_lacks_is_named() -> None:
    more = link(V4, Address("fd00::2", 64), Address("fe80::2", 64))
    routes = [
        Route(AF_INET, "10.9.0.1/32", 2),
        default("10.9.0.1"),
        Route(AF_INET, "10.8.0.0/16", 2, "10.9.0.7"),
    ]
    assert list(warnings_of(plan(more, routes=routes))) == [
        "the unikernel is not told the address fd00::2/64 of eth0: it takes one",
        "the unikernel is not told the route 10.8.0.0/16 by 10.9.0.7: it takes a default route only",
    ]


@pytest.mark.parametrize(
    ("kind", "version", "address", "line"),
    [
        ("mirage", "", INSIDE, "--ipv4=10.9.0.2/24 --ipv4-gateway=10.9.0.1 a b"),
        ("mirage", "", ALONE, "--ipv4=10.9.0.2/16 a b"),
        ("mirage", "", SIX, "--ipv6-only=true --ipv6=fd00::2/64 --ipv6-gateway=fd00::1 a b"),
        ("unikraft", "0.17.0", INSIDE, "a netdev.ip=10.9.0.2/24:10.9.0.1 -- b"),
        ("unikraft", "", ALONE, "a netdev.ip=10.9.0.2/16 -- b"),
        (
            "unikraft",
            "0.15.0",
            INSIDE,
            "a netdev.ipv4_addr=10.9.0.2 netdev.ipv4_gw_addr=10.9.0.1 "
            "netdev.ipv4_subnet_mask=255.255.255.0 -- b",
        ),
        (
            "linux",
            "",
            INSIDE,
            "panic=-1 console=ttyS0 ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0:off init=a -- b",
        ),
        (
            "linux",
            "",
            OUTSIDE,
            "panic=-1 console=ttyS0 ip=10.9.0.2::169.254.1.1:255.255.255.255::eth0:off URUNIT_DEFROUTE=1 "
            "init=a -- b",
        ),
        ("linux", "", ALONE, "panic=-1 console=ttyS0 ip=10.9.0.2:::255.255.0.0::eth0:off init=a -- b"),
    ],
)
def test_command_lines(kind: str, version: str, address: GuestAddress, line: str) -> None:
    unikernel = Unikernel("annotation", "/a", "qemu", kind, version=version)
    assert unikernel.command_line(["a", "b"], (), address) == line


@pytest.mark.parametrize(("address", "mask"), [(INSIDE, "24"), (OUTSIDE, "1"), (ALONE, "16")])
def test_rumpruns_configuration(address: GuestAddress, mask: str) -> None:
    line = Unikernel("annotation", "/a", "hvt", "rumprun").command_line(["a"], (), address)
    net = json.loads(line)["net"]
    assert (net["if"], net["type"], net["method"]) == ("ukvmif0", "inet", "static")
    assert (net["addr"], net["mask"], net.get("gw", "")) == ("10.9.0.2", mask, address.gateway)


@pytest.mark.parametrize("kind", sorted({*COMMAND_LINES} - {"", "mirage"}))
def test_an_address_of_ipv6_that_its_kind_is_not_told(kind: str) -> None:
    message = (
        f"address fd00::2: one of the kind {kind} is told an address of IPv4 only; of IPv6 is told mirage"
    )
    with pytest.raises(UnsupportedError, match=message):
        Unikernel("annotation", "/a", "qemu", kind).command_line(["a"], (), SIX)


def test_without_a_kind_there_is_no_form() -> None:
    unikernel = Unikernel("urunc.json", "/a", "hvt")
    message = r"address 10\.9\.0\.2: the urunc\.json has no .*Type, .* mirage, rumprun, unikraft, linux"
    with pytest.raises(UnsupportedError, match=message):
        unikernel.command_line(["a"], (), INSIDE)
