"""The kernel's messages, in pyroute2's form, as values."""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6
from typing import Any

import pytest

from kata_runtime.network import messages
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import (
    NETKIT_L2,
    TC_H_INGRESS,
    Address,
    Namespace,
    Neighbour,
    Qdisc,
    Route,
)


def namespace(**dumps: list[dict[str, Any]]) -> Namespace:
    kinds = ("links", "addresses", "routes", "neighbours", "qdiscs", "rules")
    return messages.namespace(**{kind: dumps.get(kind, []) for kind in kinds})


def message(fields: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {**fields, "attrs": list(attributes.items())}


def a_link(index: int, name: str, **attributes: Any) -> dict[str, Any]:
    return message(
        {"index": index, "flags": 1},
        IFLA_IFNAME=name,
        IFLA_MTU=1500,
        IFLA_ADDRESS="02:00:00:00:00:02",
        **attributes,
    )


def info(kind: str, data: Any = None) -> dict[str, Any]:
    return message({}, IFLA_INFO_KIND=kind, **({"IFLA_INFO_DATA": data} if data is not None else {}))


def test_a_name_that_is_no_text_is_refused_with_a_sentence() -> None:
    with pytest.raises(NetworkError, match=r"cannot read the interface b'.xff': its name is not UTF-8"):
        namespace(links=[message({"index": 2, "flags": 1}, IFLA_IFNAME=b"\xff")])


def test_links_with_their_addresses() -> None:
    own = {"index": 2, "prefixlen": 24, "scope": 0, "flags": 0x80, "family": AF_INET}
    made = namespace(
        links=[a_link(2, "eth0", IFLA_LINKINFO=info("veth"))],
        addresses=[
            message(
                own,
                IFA_ADDRESS="10.9.0.99",
                IFA_LOCAL="10.9.0.2",
                IFA_FLAGS=0x280,
                IFA_BROADCAST="10.9.0.255",
            ),
            message({**own, "prefixlen": 64, "scope": 253}, IFA_ADDRESS="fe80::2"),
        ],
    )
    (link,) = made.links
    assert (link.name, link.kind, link.mac, link.mtu) == ("eth0", "veth", "02:00:00:00:00:02", 1500)
    assert link.addresses == (
        Address("10.9.0.2", 24, 0, 0x280, "10.9.0.255"),
        Address("fe80::2", 64, 253, 0x80),
    )


def test_modes() -> None:
    netkit = struct.pack("=HHI", 8, 1, 7) + struct.pack("=HHI", 8, 5, 1)
    l2 = struct.pack("=HHI", 8, 5, NETKIT_L2)
    tap = struct.pack("=HHBxxx", 5, 3, 2)
    made = namespace(
        links=[
            a_link(2, "a", IFLA_LINKINFO=info("netkit", netkit)),
            a_link(3, "b", IFLA_LINKINFO=info("netkit", l2)),
            a_link(4, "c", IFLA_LINKINFO=info("netkit")),
            a_link(5, "d", IFLA_LINKINFO=info("tun", tap)),
            a_link(6, "e"),
        ]
    )
    assert [link.mode for link in made.links] == [1, NETKIT_L2, -1, 2, 0]


def test_routes() -> None:
    fields = {
        "family": AF_INET,
        "dst_len": 8,
        "scope": 0,
        "flags": 4,
        "proto": 3,
        "type": 1,
        "table": 254,
    }
    hops = [message({}, RTA_GATEWAY="10.9.0.1"), message({}, RTA_GATEWAY="10.9.0.3")]
    made = namespace(
        routes=[
            message(
                fields,
                RTA_DST="10.0.0.0",
                RTA_OIF=2,
                RTA_GATEWAY="10.9.0.1",
                RTA_PREFSRC="10.9.0.2",
                RTA_PRIORITY=7,
                RTA_METRICS=message({}, RTAX_MTU=1400),
            ),
            message({**fields, "dst_len": 0}, RTA_MULTIPATH=hops),
            message({**fields, "dst_len": 0}, RTA_OIF=2, RTA_VIA={"family": AF_INET6, "addr": "fe80::1"}),
            message({**fields, "table": 252}, RTA_TABLE=1000, RTA_DST="10.0.0.0", RTA_OIF=2),
            message({**fields, "table": 255}, RTA_DST="10.9.0.2", RTA_OIF=2),
        ]
    )
    assert made.routes == (
        Route(AF_INET, "10.0.0.0/8", 2, "10.9.0.1", "10.9.0.2", 0, 4, 7, 1400, 3),
        Route(AF_INET, "", 0, flags=4, protocol=3, hops=2),
        Route(AF_INET, "", 2, "fe80::1", flags=4, protocol=3, via=True),
        Route(AF_INET, "10.0.0.0/8", 2, flags=4, protocol=3, table=1000),
    )


def test_neighbours_without_those_of_multicast() -> None:
    own = {"ifindex": 2, "state": 0x80, "flags": 0, "ndm_type": 1}
    made = namespace(
        neighbours=[
            message(own, NDA_DST="10.9.0.1", NDA_LLADDR="02:00:00:00:00:01"),
            message(
                {**own, "state": 0x40, "ndm_type": 5}, NDA_DST="ff02::16", NDA_LLADDR="33:33:00:00:00:16"
            ),
        ]
    )
    assert made.neighbours == (Neighbour(2, "10.9.0.1", "02:00:00:00:00:01"),)


def test_traffic_control() -> None:
    made = namespace(qdiscs=[message({"index": 2, "parent": TC_H_INGRESS}, TCA_KIND="ingress")])
    assert made.qdiscs == (Qdisc(2, "ingress", TC_H_INGRESS),)


def test_only_rules_of_others_are_counted() -> None:
    made = namespace(rules=[message({}, FRA_PROTOCOL=2), message({}, FRA_PROTOCOL=3), message({})])
    assert made.rules == 2
