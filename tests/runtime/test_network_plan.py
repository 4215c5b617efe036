"""What is attached of a namespace, in which order, and the sentence for what cannot be."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from socket import AF_INET, AF_INET6

import pytest

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import (
    IFF_LOOPBACK,
    NUD_PERMANENT,
    NUD_REACHABLE,
    NUD_STALE,
    RTPROT_KERNEL,
    TC_H_INGRESS,
    TUN_TAP,
    Address,
    Link,
    Namespace,
    Neighbour,
    Qdisc,
    Route,
)
from kata_runtime.network.plan import DIRECT, MACVTAP, NONE, TCFILTER, Plan, plan

LO = Link(1, "lo", "", "00:00:00:00:00:00", 65536, IFF_LOOPBACK | 1, (Address("127.0.0.1", 8),))


def link(index: int = 2, name: str = "eth0", kind: str = "veth", **changes: object) -> Link:
    made = Link(index, name, kind, f"02:00:00:00:00:{index:02x}", 1500, 1, (Address(f"10.9.0.{index}", 24),))
    return replace(made, **changes)  # type: ignore[arg-type]


def namespace(*links: Link, **parts: object) -> Namespace:
    return Namespace(links=(LO, *(links or (link(),))), **parts)  # type: ignore[arg-type]


class TestLinks:
    def test_in_the_order_of_their_indexes(self) -> None:
        made = plan(namespace(link(7, "net2"), link(3, "eth0"), link(5, "net1", "macvlan")), TCFILTER)
        assert [(entry.link.name, entry.tap) for entry in made.attachments] == [
            ("eth0", "tap0_kata"),
            ("net1", "tap1_kata"),
            ("net2", "tap2_kata"),
        ]

    @pytest.mark.parametrize("kind", ["veth", "vlan", "macvlan", "ipvlan", "netkit"])
    def test_kinds(self, kind: str) -> None:
        (attachment,) = plan(namespace(link(kind=kind)), TCFILTER).attachments
        assert attachment.model == TCFILTER

    @pytest.mark.parametrize(
        ("kind", "model"),
        [
            ("veth", MACVTAP),
            ("macvlan", MACVTAP),
            ("vlan", TCFILTER),
            ("ipvlan", TCFILTER),
            ("netkit", TCFILTER),
        ],
    )
    def test_macvtap_where_it_can(self, kind: str, model: str) -> None:
        (attachment,) = plan(namespace(link(kind=kind)), MACVTAP).attachments
        assert attachment.model == model

    def test_a_tap_is_taken_as_it_is(self) -> None:
        (attachment,) = plan(namespace(link(name="tap5", kind="tun", mode=TUN_TAP)), TCFILTER).attachments
        assert (attachment.model, attachment.tap) == (DIRECT, "tap5")

    def test_links_without_an_address_are_skipped(self) -> None:
        made = plan(namespace(link(kind="dummy", addresses=()), link(3)), TCFILTER)
        assert [entry.link.index for entry in made.attachments] == [3]

    @pytest.mark.parametrize("name", ["sit0", "tunl0", "ip6tnl0", "gre0", "erspan0"])
    def test_default_tunnels_are_skipped_with_addresses_too(self, name: str) -> None:
        assert plan(namespace(link(name=name, kind="sit")), TCFILTER) == Plan()

    def test_an_empty_namespace(self) -> None:
        assert plan(Namespace(links=(LO,)), TCFILTER) == Plan()

    def test_model_none_says_what_the_guest_does_not_get(self) -> None:
        made = plan(namespace(), NONE)
        assert made.attachments == ()
        assert made.warnings == (
            "the pod's network namespace has the interface eth0 (10.9.0.2/24), which the guest does not get: "
            'internetworking_model is "none"',
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("refused", "sentence"),
        [
            (
                link(kind="dummy"),
                "it is of the kind dummy; supported are ipvlan, macvlan, netkit, tap, veth, vlan",
            ),
            (link(kind=""), "it is a device of the hardware; supported are"),
            (link(kind="netkit", mode=1), 'it is a netkit device in mode "l3"'),
            (link(kind="tun", mode=1), "it is a tun device, which has no Ethernet frames"),
            (link(mtu=65535), "its MTU is 65535, and a tap's is at most 65521"),
        ],
    )
    def test_links(self, refused: Link, sentence: str) -> None:
        with pytest.raises(
            NetworkError, match="cannot attach the interface eth0 of the pod's network"
        ) as caught:
            plan(namespace(refused), TCFILTER)
        assert sentence in str(caught.value)

    def test_two_with_one_mac(self) -> None:
        with pytest.raises(NetworkError, match="same MAC address as net1, 02:00:00:00:00:02"):
            plan(namespace(link(), link(3, "net1", mac="02:00:00:00:00:02")), TCFILTER)

    def test_a_tap_that_exists_already(self) -> None:
        with pytest.raises(NetworkError, match="there is an interface tap0_kata; another sandbox"):
            plan(namespace(link(), link(3, "tap0_kata", "tun", addresses=())), TCFILTER)

    def test_a_link_that_is_attached_already(self) -> None:
        with pytest.raises(NetworkError, match="it has an ingress qdisc; another sandbox"):
            plan(namespace(qdiscs=(Qdisc(2, "ingress", TC_H_INGRESS),)), TCFILTER)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"table": 100}, "it is in table 100"),
            ({"type": 6, "link": 0}, "it is of type 6"),
            ({"type": 6, "link": 1}, "it is of type 6"),
            ({"hops": 2, "link": 0}, "it has 2 next hops"),
            ({"via": True}, "its gateway is of the other address family"),
        ],
    )
    def test_routes_that_the_protocol_does_not_have(self, change: dict[str, int], sentence: str) -> None:
        route = Route(AF_INET, "10.0.0.0/8", 2, "10.9.0.1", protocol=3)
        with pytest.raises(NetworkError, match=r"route to 10\.0\.0\.0/8 by 10\.9\.0\.1 of") as caught:
            plan(namespace(routes=(replace(route, **change),)), TCFILTER)  # type: ignore[arg-type]
        assert sentence in str(caught.value)

    def test_policy_rules(self) -> None:
        with pytest.raises(NetworkError, match="cannot give the 2 policy rules"):
            plan(namespace(rules=2), TCFILTER)

    def test_none_of_this_matters_without_attachment(self) -> None:
        assert len(plan(namespace(link(kind="dummy"), rules=2), NONE).warnings) == 1


class TestRoutes:
    def test_those_of_the_link_come_before_those_through_a_gateway(self) -> None:
        gateway = Route(AF_INET, "169.254.1.1/32", 2, scope=253, protocol=3)
        default = Route(AF_INET, "", 2, "169.254.1.1", protocol=3)
        default6 = Route(AF_INET6, "", 2, "fe80::1", protocol=3)
        made = plan(namespace(routes=(default, default6, gateway)), TCFILTER)
        assert made.routes == (gateway, default, default6)

    def test_the_kernels_own_are_left_to_the_guests_kernel(self) -> None:
        own = Route(AF_INET, "10.9.0.0/24", 2, source="10.9.0.2", scope=253, protocol=RTPROT_KERNEL)
        unreachable = Route(AF_INET6, "", 1, type=7, protocol=RTPROT_KERNEL)
        assert plan(namespace(routes=(own, unreachable)), TCFILTER).routes == ()

    def test_those_of_links_that_are_not_attached_are_left_out(self) -> None:
        assert plan(namespace(routes=(Route(AF_INET, "10.8.0.0/16", 1, protocol=3),)), TCFILTER).routes == ()


class TestNeighbours:
    def test_permanent_ones_and_gateways(self) -> None:
        permanent = Neighbour(2, "169.254.1.1", "ee:ee:ee:ee:ee:ee")
        gateway = Neighbour(2, "10.9.0.1", "02:00:00:00:00:01", NUD_STALE)
        other = Neighbour(2, "10.9.0.77", "02:00:00:00:00:77", NUD_REACHABLE)
        elsewhere = Neighbour(1, "10.9.0.1", "02:00:00:00:00:01", NUD_PERMANENT)
        nameless = Neighbour(2, "10.9.0.3", "", NUD_PERMANENT)
        made = plan(
            namespace(
                routes=(Route(AF_INET, "", 2, "10.9.0.1", protocol=3),),
                neighbours=(permanent, gateway, other, elsewhere, nameless),
            ),
            TCFILTER,
        )
        assert made.neighbours == (permanent, replace(gateway, state=NUD_REACHABLE))


def test_values_cross_as_json() -> None:
    whole = namespace(
        routes=(Route(AF_INET, "", 2, "10.9.0.1", protocol=3),),
        neighbours=(Neighbour(2, "10.9.0.9", "02:00:00:00:00:09"),),
        qdiscs=(Qdisc(1, "noqueue", 0xFFFFFFFF),),
    )
    assert Namespace.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    made = plan(whole, TCFILTER)
    assert Plan.from_json(json.loads(json.dumps(asdict(made)))) == made
