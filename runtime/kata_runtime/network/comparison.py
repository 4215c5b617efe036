"""What the guest says of its network against what its namespace says: a sentence for each difference.

A guest may say anything: what is no address stays the text that it is, of which the beginning is shown; of
more differences than an operator reads there is their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

from kata_agent.protos import agent_pb2, types_pb2
from kata_runtime.network.guest import describe
from kata_runtime.network.plan import Plan

MOST = 32
"""Differences that are told one by one."""

_MOST_TEXT = 100


@dataclass(frozen=True, slots=True)
class Facts:
    """What one side says of an interface. routes: those that leave by it, as iproute2 prints them."""

    mac: str
    mtu: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]


def facts(interfaces: Iterable[types_pb2.Interface], routes: Iterable[types_pb2.Route]) -> dict[str, Facts]:
    """What one side says of each of its interfaces, by name."""
    by_device: dict[str, list[str]] = {}
    for route in routes:
        by_device.setdefault(route.device, []).append(_route_text(route))
    return {
        interface.name: Facts(
            interface.hwAddr,
            interface.mtu,
            tuple(sorted(_addresses(interface.IPAddresses))),
            tuple(by_device.get(interface.name, ())),
        )
        for interface in interfaces
    }


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
    more = len(lines) - MOST
    return lines if more <= 0 else [*lines[:MOST], f"and {more} differences more"]


def _interface(wanted: types_pb2.Interface, found: dict[str, types_pb2.Interface]) -> Iterator[str]:
    guests = found.get(wanted.name)
    if guests is None:
        yield f"the guest has no interface {wanted.name}"
        return
    if guests.hwAddr != wanted.hwAddr:
        mac = guests.hwAddr[:_MOST_TEXT]
        yield f"{wanted.name} has the MAC address {mac} in the guest, and {wanted.hwAddr} outside"
    if guests.mtu != wanted.mtu:
        yield f"{wanted.name} has the MTU {guests.mtu} in the guest, and {wanted.mtu} outside"
    inside, outside = _addresses(guests.IPAddresses), _addresses(wanted.IPAddresses)
    for address in sorted(outside - inside):
        yield f"{wanted.name} lacks the address {address} in the guest"
    for address in sorted(inside - outside):
        # The guest's kernel makes a link-local one even where the namespace has none.
        if not _is_link_local(address):
            yield f"{wanted.name} has the address {address[:_MOST_TEXT]} in the guest only"


def _addresses(entries: Iterable[types_pb2.IPAddress]) -> set[str]:
    return {f"{_normal(entry.address, ip_address)}/{entry.mask}" for entry in entries}


def _is_link_local(address: str) -> bool:
    try:
        return ip_interface(address).is_link_local
    except ValueError:
        return False


def _normal(text: str, parse: Callable[[str], object]) -> str:
    """The usual form of an address, or the text itself."""
    try:
        return str(parse(text))
    except ValueError:
        return text


def _route_text(route: types_pb2.Route) -> str:
    """A route in one form for both sides, as iproute2 prints it."""
    default = "default" if route.family == types_pb2.v4 else "default (IPv6)"
    text = [_normal(route.dest, ip_network) if route.dest else default]
    for keyword, value in (
        ("via", route.gateway),
        ("dev", route.device),
        ("src", route.source.partition("/")[0]),
        ("metric", route.metric),
        ("mtu", route.mtu),
    ):
        if value:
            text += [keyword, str(value)]
    return " ".join(text)
