"""What a unikernel is told of its pod's network: one address and the gateway, on its command line.

It has one interface and no agent. So of the pod's network there is what a command line can say; the rest is
refused where the unikernel would lack its network, and otherwise named in a warning.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from kata_runtime.errors import UnsupportedError
from kata_runtime.network.model import IFA_F_DADFAILED, Address, Link, Route
from kata_runtime.network.plan import Plan


class GuestAddress(NamedTuple):
    """An address with the network's prefix, and the gateway; empty where there is no default route.

    It is of IPv4; of IPv6 where the pod has no other.
    """

    address: str
    prefix: int
    gateway: str = ""

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return _family_of(self.address)

    @property
    def mask(self) -> str:
        """The prefix of IPv4 as "255.255.255.0"."""
        return str(ipaddress.IPv4Network((0, self.prefix)).netmask)

    @property
    def reaches_gateway(self) -> bool:
        """Whether the gateway is in the network of the address, or there is none."""
        network = ipaddress.ip_interface(f"{self.address}/{self.prefix}").network
        return not self.gateway or ipaddress.ip_address(self.gateway) in network


def address_of(plan: Plan) -> GuestAddress | None:
    """The address for a unikernel; None where the pod has no interface.

    Raises:
        UnsupportedError: a unikernel cannot have this network.
    """
    if not plan.attachments:
        return None
    first, *others = (attachment.link for attachment in plan.attachments)
    if others:
        names = ", ".join(link.name for link in others)
        raise UnsupportedError(f"cannot attach {names}: a unikernel has one interface, which is {first.name}")
    address = _told(first)
    if address is None:
        raise UnsupportedError(
            f"cannot attach {first.name}: it has no address that was given to it and is nobody else's, and a "
            "unikernel is told no other"
        )
    return GuestAddress(address.address, address.prefix, _gateway_of(plan, _family_of(address.address)))


def warnings_of(plan: Plan) -> Iterator[str]:
    """What a unikernel lacks of its pod's network."""
    for link in (attachment.link for attachment in plan.attachments):
        told = _told(link)
        for address in link.addresses:
            if address != told and not _is_links_own(address):
                yield f"the unikernel is not told the address {address} of {link.name}: it takes one"
        family = _family_of(told.address) if told is not None else AF_INET
        for route in plan.routes:
            if route.family == family and route.destination and not _is_to_gateway(route, plan):
                yield f"the unikernel is not told the route {route}: it takes a default route only"


def _told(link: Link) -> Address | None:
    """The first address of IPv4, or else of IPv6, that was given to a link and is nobody else's."""
    given = [
        address
        for address in link.addresses
        if not address.flags & IFA_F_DADFAILED and not _is_links_own(address)
    ]
    return min(given, key=lambda address: _family_of(address.address) != AF_INET, default=None)


def _is_links_own(address: Address) -> bool:
    return _family_of(address.address) == AF_INET6 and ipaddress.ip_address(address.address).is_link_local


def _family_of(address: str) -> int:
    return AF_INET if "." in address else AF_INET6


def _gateway_of(plan: Plan, family: int) -> str:
    routes = [route for route in plan.routes if route.family == family and not route.destination]
    return min(routes, key=lambda route: route.metric).gateway if routes else ""


def _is_to_gateway(route: Route, plan: Plan) -> bool:
    return route.destination.partition("/")[0] == _gateway_of(plan, route.family)
