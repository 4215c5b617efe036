"""What the guest says against what the namespace says."""

from __future__ import annotations

from socket import AF_INET, AF_INET6

import pytest

from kata_agent.protos import agent_pb2, types_pb2
from kata_runtime.network.comparison import MOST, differences
from kata_runtime.network.model import Address, Link, Route
from kata_runtime.network.plan import TCFILTER, Attachment, Plan

ETH0 = Link(
    2, "eth0", "veth", "02:00:00:00:00:02", 1450, 1, (Address("10.9.0.2", 24), Address("fd00:9::2", 64))
)
PLAN = Plan(
    (Attachment(ETH0, "tap0_kata", TCFILTER),),
    (Route(AF_INET, "", 2, "10.9.0.1", metric=5), Route(AF_INET6, "", 2, "fd00:9::1", metric=1024)),
)


def answers() -> tuple[types_pb2.Interface, agent_pb2.Routes]:
    """What a guest says that has all of it, and its kernel's own besides."""
    addresses = [
        types_pb2.IPAddress(family=types_pb2.v6, address="fe80::2", mask="64"),
        types_pb2.IPAddress(family=types_pb2.v6, address="fd00:9:0::2", mask="64"),
        types_pb2.IPAddress(address="10.9.0.2", mask="24"),
    ]
    eth0 = types_pb2.Interface(name="eth0", hwAddr=ETH0.mac, mtu=1450, IPAddresses=addresses)
    routes = agent_pb2.Routes(
        Routes=[
            types_pb2.Route(dest="10.9.0.0/24", device="eth0", scope=253),
            types_pb2.Route(gateway="10.9.0.1", device="eth0", metric=5),
            types_pb2.Route(family=types_pb2.v6, gateway="fd00:9::1", device="eth0"),
        ]
    )
    return eth0, routes


def compare(eth0: types_pb2.Interface | None, routes: agent_pb2.Routes) -> list[str]:
    lo = types_pb2.Interface(name="lo", hwAddr="00:00:00:00:00:00", mtu=65536)
    return differences(PLAN, agent_pb2.Interfaces(Interfaces=[lo, *([eth0] if eth0 else [])]), routes)


def test_equal() -> None:
    assert compare(*answers()) == []


def test_no_interface() -> None:
    assert compare(None, answers()[1]) == ["the guest has no interface eth0"]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("mtu", 1500, "eth0 has the MTU 1500 in the guest, and 1450 outside"),
        (
            "hwAddr",
            "02:00:00:00:00:99",
            "eth0 has the MAC address 02:00:00:00:00:99 in the guest, and 02:00:00:00:00:02 outside",
        ),
    ],
)
def test_fields(field: str, value: object, sentence: str) -> None:
    eth0, routes = answers()
    setattr(eth0, field, value)
    assert compare(eth0, routes) == [sentence]


def test_addresses() -> None:
    eth0, routes = answers()
    eth0.IPAddresses[2].address = "10.9.0.3"
    assert compare(eth0, routes) == [
        "eth0 lacks the address 10.9.0.2/24 in the guest",
        "eth0 has the address 10.9.0.3/24 in the guest only",
    ]


def test_routes() -> None:
    eth0, routes = answers()
    routes.Routes[1].metric = 0
    del routes.Routes[2]
    assert compare(eth0, routes) == [
        "the guest lacks the route default via 10.9.0.1 dev eth0 metric 5",
        "the guest lacks the route default (IPv6) via fd00:9::1 dev eth0",
    ]


def test_a_guest_that_says_much_fills_no_log() -> None:
    eth0, routes = answers()
    eth0.hwAddr = "x" * 100_000
    for number in range(10_000):
        eth0.IPAddresses.add(address=f"{number}{'y' * 1000}", mask="8")
    found = compare(eth0, routes)
    assert (len(found), found[-1]) == (MOST + 1, f"and {10_001 - MOST} differences more")
    assert max(map(len, found)) < 250


def test_what_is_no_address_is_a_difference() -> None:
    eth0, routes = answers()
    eth0.IPAddresses.add(address="no address", mask="x")
    routes.Routes.add(dest="nowhere", device="eth0")
    assert compare(eth0, routes) == ["eth0 has the address no address/x in the guest only"]
