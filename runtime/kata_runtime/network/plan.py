"""From what a network namespace holds to what is attached of it, how, and what cannot be. Pure functions.

Links are taken in the order of their indexes, so that the guest finds them in that order too.
"""

from __future__ import annotations

from dataclasses import dataclass

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import (
    IFF_LOOPBACK,
    NETKIT_L2,
    NUD_DELAY,
    NUD_PERMANENT,
    NUD_PROBE,
    NUD_REACHABLE,
    NUD_STALE,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    RTPROT_KERNEL,
    TC_H_INGRESS,
    TUN_TAP,
    Link,
    Namespace,
    Neighbour,
    Route,
    link_from_json,
)
from kata_runtime.network.namespaces import FALLBACK_DEVICES, TAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

TCFILTER, MACVTAP, NONE = "tcfilter", "macvtap", "none"
"""Models: a tap and a pair of redirecting filters, a macvtap above the link, nothing."""

DIRECT = "direct"
"""What a tap of the namespace is, whatever the model: given to the VMM as it is."""

KINDS = frozenset({"veth", "vlan", "macvlan", "ipvlan", "netkit", "tun"})
"""Kinds of links that are attached; `_unsupported` has conditions for some."""

_TCFILTER_ONLY = frozenset({"vlan", "ipvlan", "netkit"})
"""Kinds whose MAC is their parent's, or which can carry no macvtap."""


MAX_TAP_MTU = 65521
"""The largest MTU of a tap: 65535 bytes without the Ethernet header (drivers/net/tun.c)."""

_THE_NAMESPACE = "the pod's network namespace"
_LEARNT = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of the pod. model: TCFILTER, MACVTAP or DIRECT. tap: the name of the device for the VMM.

    The guest's interface has the link's name, MAC and MTU.
    """

    link: Link
    tap: str
    model: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Attachment:
        """What `dataclasses.asdict` gave. Raises TypeError or KeyError when it is anything else."""
        return cls(**{**value, "link": link_from_json(value["link"])})


@dataclass(frozen=True, slots=True)
class Plan:
    """What is attached, in order, what the guest is told besides, and what the operator should know.

    routes: in an order in which each can be added: those of a link's own before those through a gateway.
    """

    attachments: tuple[Attachment, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """What `dataclasses.asdict` gave. Raises TypeError or KeyError when it is anything else."""
        return cls(
            attachments=tuple(Attachment.from_json(entry) for entry in value["attachments"]),
            routes=tuple(Route(**route) for route in value["routes"]),
            neighbours=tuple(Neighbour(**entry) for entry in value["neighbours"]),
            warnings=tuple(value["warnings"]),
        )


def plan(namespace: Namespace, model: str) -> Plan:
    """Plan the attachment of a namespace. model: TCFILTER, MACVTAP or NONE.

    Raises:
        NetworkError: something of the network cannot be given to the guest; the message names it.
    """
    links = [link for link in sorted(namespace.links, key=lambda link: link.index) if _is_wanted(link)]
    if model == NONE:
        return Plan(warnings=tuple(_unattached(link) for link in links))
    _check(namespace, links)
    indexes = {link.index for link in links}
    routes = [route for route in namespace.routes if route.link in indexes]
    routes = [route for route in routes if route.protocol != RTPROT_KERNEL]
    return Plan(
        attachments=tuple(_attachment(link, number, model) for number, link in enumerate(links)),
        # Stable: else in the kernel's order. A gateway outside of the subnet is reached by a route of the
        # link.
        routes=tuple(sorted(routes, key=lambda route: bool(route.gateway))),
        neighbours=tuple(_neighbours(namespace.neighbours, routes, indexes)),
    )


def _is_wanted(link: Link) -> bool:
    return bool(link.addresses) and not link.flags & IFF_LOOPBACK and link.name not in FALLBACK_DEVICES


def _unattached(link: Link) -> str:
    addresses = ", ".join(map(str, link.addresses))
    return (
        f"the pod's network namespace has the interface {link.name} ({addresses}), which the guest does not "
        f'get: internetworking_model is "{NONE}"'
    )


def _attachment(link: Link, number: int, model: str) -> Attachment:
    if link.kind == "tun":
        return Attachment(link, link.name, DIRECT)
    return Attachment(link, _tap_name(number), TCFILTER if link.kind in _TCFILTER_ONLY else model)


def _tap_name(number: int) -> str:
    return TAP.format(number)


# -- what cannot be attached ---------------------------------------------------------------------------------


def _check(namespace: Namespace, links: list[Link]) -> None:
    """Raise NetworkError for what cannot be attached as it is."""
    for number, link in enumerate(links):
        if reason := _unsupported(link) or _taken(link, number, namespace) or _ambiguous(link, links):
            raise NetworkError(f"cannot attach the interface {link.name} of {_THE_NAMESPACE}: {reason}")
    carried = {link.index for link in links}
    for route in namespace.routes:
        if reason := _not_carried(route, carried):
            raise NetworkError(f"cannot give the route to {route} of {_THE_NAMESPACE} to the guest: {reason}")
    if namespace.rules:
        raise NetworkError(
            f"cannot give the {namespace.rules} policy rules of {_THE_NAMESPACE} to the guest: "
            "the agent's protocol has none; remove the CNI plugin that adds them (sbr, vrf)"
        )


def _taken(link: Link, number: int, namespace: Namespace) -> str:
    """Why a link is attached to a machine already, or nothing."""
    tap = _tap_name(number)
    if link.kind == "tun":
        return ""
    if any(other.name == tap for other in namespace.links):
        found = f"there is an interface {tap}"
    elif any(qdisc.link == link.index and qdisc.parent == TC_H_INGRESS for qdisc in namespace.qdiscs):
        found = "it has an ingress qdisc"
    else:
        return ""
    return (
        f"{found}; another sandbox uses this namespace, or one that was killed left it: make a new namespace"
    )


def _ambiguous(link: Link, links: list[Link]) -> str:
    """Why the guest could not find a link by its MAC, or nothing."""
    for other in links:
        if other is not link and other.mac == link.mac:
            return f"it has the same MAC address as {other.name}, {link.mac}, by which the guest finds it"
    return ""


def _unsupported(link: Link) -> str:
    """Why a link cannot be attached, or nothing."""
    kinds = ", ".join(sorted(KINDS - {"tun"} | {"tap"}))
    if link.kind not in KINDS:
        what = f"of the kind {link.kind}" if link.kind else "a device of the hardware"
        return f"it is {what}; supported are {kinds}"
    if link.kind == "netkit" and link.mode != NETKIT_L2:
        return 'it is a netkit device in mode "l3", which has no Ethernet frames; configure mode "l2"'
    if link.kind == "tun" and link.mode != TUN_TAP:
        return "it is a tun device, which has no Ethernet frames; use a tap"
    if link.mtu > MAX_TAP_MTU:
        return (
            f"its MTU is {link.mtu}, and a tap's is at most {MAX_TAP_MTU}; lower it in the CNI configuration"
        )
    return ""


def _not_carried(route: Route, links: set[int]) -> str:
    """Why a route cannot be carried over, or nothing; also nothing where the guest makes its own."""
    if route.protocol == RTPROT_KERNEL:
        return ""
    if route.type != RTN_UNICAST:
        return f"it is of type {route.type}, and the agent's protocol has unicast routes only"
    if route.link and route.link not in links:
        return ""  # of loopback, or of a link that is not attached
    if route.table != RT_TABLE_MAIN:
        return f"it is in table {route.table}, and the agent's protocol has the main table only"
    if route.hops > 1:
        return f"it has {route.hops} next hops, and the agent's protocol has one for each route"
    if route.via:
        return "its gateway is of the other address family, which the agent's protocol does not have"
    return ""


# -- what goes with the interfaces ---------------------------------------------------------------------------


def _neighbours(entries: Iterable[Neighbour], routes: list[Route], links: set[int]) -> Iterable[Neighbour]:
    """Permanent entries, and what is known of the gateways of default routes, for which Azure needs it."""
    gateways = {(route.link, route.gateway) for route in routes if not route.destination and route.gateway}
    for entry in entries:
        if entry.link not in links or not entry.mac:
            continue
        if entry.state == NUD_PERMANENT:
            yield entry
        elif entry.state & _LEARNT and (entry.link, entry.address) in gateways:
            yield Neighbour(entry.link, entry.address, entry.mac, NUD_REACHABLE, entry.flags)
