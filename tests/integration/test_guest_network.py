"""The agent's side of a network, in a namespace of its own: what it sets, replaces and answers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from kata_agent.guest import network, system
from kata_agent.guest.errors import NotFoundError
from kata_agent.protos import agent_pb2, types_pb2
from network_bed import Netns

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="needs iproute2 (ip)"),
]

MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")


@pytest.fixture
def guest() -> Iterator[Netns]:
    """A namespace with two devices, eth0 and eth1, as a guest's kernel names them."""
    with closing(Netns("guest")) as made:
        for number, mac in enumerate(MACS):
            made.ip("link", "add", f"eth{number}", "address", mac, "type", "veth", "peer", f"peer{number}")
            made.ip("link", "set", f"peer{number}", "up")
        yield made


def interface(mac: str, name: str, *addresses: str, **fields: Any) -> types_pb2.Interface:
    entries = []
    for address in addresses:
        text, _, mask = address.partition("/")
        family = types_pb2.v6 if ":" in text else types_pb2.v4
        entries.append(types_pb2.IPAddress(family=family, address=text, mask=mask))
    return types_pb2.Interface(device=name, name=name, hwAddr=mac, IPAddresses=entries, **fields)


def shown(guest: Netns, name: str) -> types_pb2.Interface:
    answer = guest.call(network.list_interfaces)
    (found,) = (entry for entry in answer.Interfaces if entry.name == name)
    return found


def test_names_are_swapped(guest: Netns) -> None:
    for mac, name in zip(MACS, ("eth1", "eth0"), strict=True):
        guest.call(partial(network.update_interface, interface(mac, name)))
    assert [shown(guest, name).hwAddr for name in ("eth1", "eth0")] == list(MACS)


def test_an_interface_of_a_template_gets_its_mac(guest: Netns) -> None:
    wanted = interface("02:00:00:00:00:99", "eth0", "10.9.0.2/24")
    guest.call(lambda: network.update_interface(wanted))
    assert shown(guest, "eth0").hwAddr == "02:00:00:00:00:99"


def test_what_a_template_left_is_removed(guest: Netns) -> None:
    for addresses in (("10.9.0.2/24", "fd00:9::2/64"), ("10.9.0.3/24", "fd00:9::3/64")):
        guest.call(partial(network.update_interface, interface(MACS[0], "eth0", *addresses)))
    found = {entry.address for entry in shown(guest, "eth0").IPAddresses}
    assert {"10.9.0.3", "fd00:9::3"} < found
    assert not {"10.9.0.2", "fd00:9::2"} & found


def test_no_interface_of_that_mac_or_name(guest: Netns) -> None:
    with pytest.raises(NotFoundError, match="no network interface 'eth7'"):
        guest.call(lambda: network.update_interface(interface("02:00:00:00:00:99", "eth7")))


def test_mtu_and_noarp(guest: Netns) -> None:
    guest.call(lambda: network.update_interface(interface(MACS[0], "eth0", mtu=1280, raw_flags=0x80)))
    found = shown(guest, "eth0")
    assert (found.mtu, found.raw_flags) == (1280, 0x80)


def test_addresses_are_usable_at_once(guest: Netns) -> None:
    wanted = interface(MACS[0], "eth0", "fd00:9::2/64", "10.9.0.2/24")
    guest.call(lambda: network.update_interface(wanted))
    assert "tentative" not in guest.ip("address", "show", "dev", "eth0")


def test_without_ipv6_the_other_addresses_are_set(guest: Netns) -> None:
    for name in ("all", "default", "eth0"):
        guest.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    wanted = interface(MACS[0], "eth0", "fe80::2/64", "fd00:9::2/64", "10.9.0.2/24")
    guest.call(lambda: network.update_interface(wanted))
    assert [entry.address for entry in shown(guest, "eth0").IPAddresses] == ["10.9.0.2"]


def test_an_address_without_a_route_to_its_network(guest: Netns) -> None:
    wanted = interface(MACS[0], "eth0", "10.9.0.2/24")
    wanted.IPAddresses[0].flags = 0x200
    guest.call(lambda: network.update_interface(wanted))
    assert "10.9.0.0/24" not in guest.ip("route", "show")
    assert shown(guest, "eth0").IPAddresses[0].flags == 0x200


def test_two_default_routes_differ_by_their_metric(guest: Netns) -> None:
    for number, mac in enumerate(MACS):
        wanted = interface(mac, f"eth{number}", f"10.{number}.0.2/24")
        guest.call(partial(network.update_interface, wanted))
    routes = agent_pb2.Routes(
        Routes=[
            types_pb2.Route(gateway="10.0.0.1", device="eth0"),
            types_pb2.Route(gateway="10.1.0.1", device="eth1", metric=100),
        ]
    )
    answer = guest.call(lambda: network.update_routes(routes))
    defaults = [(route.device, route.metric) for route in answer.Routes if not route.dest]
    assert defaults == [("eth0", 0), ("eth1", 100)]


def test_the_same_routes_twice(guest: Netns) -> None:
    guest.call(lambda: network.update_interface(interface(MACS[0], "eth0", "10.0.0.2/24", "fd00::2/64")))
    routes = agent_pb2.Routes(
        Routes=[
            types_pb2.Route(gateway="10.0.0.1", device="eth0"),
            types_pb2.Route(dest="10.0.0.0/24", device="eth0", scope=253, source="10.0.0.2"),
            types_pb2.Route(family=types_pb2.v6, gateway="fd00::1", device="eth0"),
        ]
    )
    first = guest.call(lambda: network.update_routes(routes))
    assert guest.call(lambda: network.update_routes(routes)) == first


def test_sysctls_of_the_pod(guest: Netns) -> None:
    wanted = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
    guest.call(lambda: system.set_network_parameters(wanted))
    shown = guest.run("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").stdout
    assert shown.strip() == "0"
