"""What the agent is asked for a plan."""

from __future__ import annotations

from socket import AF_INET, AF_INET6

from kata_agent.protos import types_pb2
from kata_runtime.network.guest import describe
from kata_runtime.network.model import (
    IFA_F_DADFAILED,
    IFA_F_NOPREFIXROUTE,
    IFA_F_PERMANENT,
    IFF_NOARP,
    RTNH_F_ONLINK,
    Address,
    Link,
    Neighbour,
    Route,
)
from kata_runtime.network.plan import TCFILTER, Attachment, Plan

ADDRESSES = (
    Address("10.9.0.2", 32, flags=IFA_F_PERMANENT | IFA_F_NOPREFIXROUTE),
    Address("fd00:9::2", 64),
    Address("fd00:9::bad", 64, flags=IFA_F_PERMANENT | IFA_F_DADFAILED),
)
ETH0 = Link(2, "eth0", "veth", "02:00:00:00:00:02", 1450, IFF_NOARP | 1, ADDRESSES)


def plan(*routes: Route, neighbours: tuple[Neighbour, ...] = ()) -> Plan:
    return Plan((Attachment(ETH0, "tap0_kata", TCFILTER),), routes, neighbours)


def test_an_interface() -> None:
    (interface,) = describe(plan()).interfaces
    assert (interface.name, interface.hwAddr, interface.mtu) == ("eth0", "02:00:00:00:00:02", 1450)
    assert interface.raw_flags == IFF_NOARP
    assert [(a.family, a.address, a.mask, a.flags) for a in interface.IPAddresses] == [
        (types_pb2.v4, "10.9.0.2", "32", IFA_F_NOPREFIXROUTE),
        (types_pb2.v6, "fd00:9::2", "64", 0),
    ]


def test_a_route_with_everything() -> None:
    network = describe(
        plan(
            Route(
                AF_INET,
                "10.0.0.0/8",
                2,
                gateway="169.254.1.1",
                source="10.9.0.2",
                flags=RTNH_F_ONLINK | 16,  # and RTNH_F_LINKDOWN, which is no wish
                metric=50,
                mtu=1400,
            )
        )
    )
    (route,) = network.routes.Routes
    assert route == types_pb2.Route(
        dest="10.0.0.0/8",
        gateway="169.254.1.1",
        device="eth0",
        source="10.9.0.2",
        flags=RTNH_F_ONLINK,
        mtu=1400,
        metric=50,
    )
    assert network.needs_metrics


def test_the_kernels_default_metric_is_not_asked_for() -> None:
    network = describe(
        plan(Route(AF_INET6, "", 2, "fd00:9::1", metric=1024), Route(AF_INET, "", 2, "10.9.0.1"))
    )
    assert not network.needs_metrics
    assert [route.family for route in network.routes.Routes] == [types_pb2.v6, types_pb2.v4]


def test_a_neighbour() -> None:
    (entry,) = describe(
        plan(neighbours=(Neighbour(2, "169.254.1.1", "ee:ee:ee:ee:ee:ee"),))
    ).neighbours.ARPNeighbors
    assert (entry.toIPAddress.address, entry.device, entry.lladdr, entry.state) == (
        "169.254.1.1",
        "eth0",
        "ee:ee:ee:ee:ee:ee",
        0x80,
    )
