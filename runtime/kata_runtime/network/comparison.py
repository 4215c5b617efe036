"""What the guest says of its network against what its namespace says: a sentence for each difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_interface, ip_network

from kata_agent.protos import agent_pb2, types_pb2
from kata_runtime.network.guest import describe
from kata_runtime.network.plan import Plan


def differences(plan: Plan, interfaces: agent_pb2.Interfaces, routes: agent_pb2.Routes) -> list[str]:
    """Compare the answers of ListInterfaces and ListRoutes with what the guest was to get; empty when equal.

    Of the guest's routes only those that it was given count: its kernel makes others.
    """
    wanted = describe(plan)
    found = {interface.name: interface for interface in interfaces.Interfaces}
    lines = [line for interface in wanted.interfaces for line in _interface(interface, found)]
    there = {_route_text(route) for route in routes.Routes}
    lines += [
        f"the guest lacks the route {text}"
        for text in map(_route_text, wanted.routes.Routes)
        if text not in there
    ]
    return lines


def _interface(wanted: types_pb2.Interface, found: dict[str, types_pb2.Interface]) -> Iterator[str]:
    guests = found.get(wanted.name)
    if guests is None:
        yield f"the guest has no interface {wanted.name}"
        return
    if guests.hwAddr != wanted.hwAddr:
        yield f"{wanted.name} has the MAC address {guests.hwAddr} in the guest, and {wanted.hwAddr} outside"
    if guests.mtu != wanted.mtu:
        yield f"{wanted.name} has the MTU {guests.mtu} in the guest, and {wanted.mtu} outside"
    inside, outside = _addresses(guests.IPAddresses), _addresses(wanted.IPAddresses)
    for address in sorted(outside - inside):
        yield f"{wanted.name} lacks the address {address} in the guest"
    for address in sorted(inside - outside):
        # The guest's kernel makes a link-local one even where the namespace has none.
        if not ip_interface(address).is_link_local:
            yield f"{wanted.name} has the address {address} in the guest only"


def _addresses(entries: Iterable[types_pb2.IPAddress]) -> set[str]:
    return {f"{ip_address(entry.address)}/{entry.mask}" for entry in entries}


def _route_text(route: types_pb2.Route) -> str:
    """A route in one form for both sides, in iproute2's words."""
    default = "default" if route.family == types_pb2.v4 else "default (IPv6)"
    words = [str(ip_network(route.dest)) if route.dest else default]
    for word, value in (
        ("via", route.gateway),
        ("dev", route.device),
        ("src", route.source.partition("/")[0]),
        ("metric", route.metric),
        ("mtu", route.mtu),
    ):
        if value:
            words += [word, str(value)]
    return " ".join(words)
