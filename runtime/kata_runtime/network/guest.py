"""What the guest's agent is asked for a plan: its requests, in the order in which they have to be made.

Interfaces first, then neighbours, then routes: a gateway may be reachable by a permanent neighbour only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from socket import AF_INET6

from kata_agent.protos import agent_pb2, types_pb2
from kata_runtime.network.model import (
    IFA_F_DADFAILED,
    IFA_F_NOPREFIXROUTE,
    IFF_NOARP,
    RTNH_F_ONLINK,
    Link,
    Route,
    family_of,
)
from kata_runtime.network.plan import Plan

_DEFAULT_METRIC_V6 = 1024
"""What the kernel sets where none is given (IP6_RT_PRIO_USER); for IPv4 it is 0."""


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """Requests for the agent."""

    interfaces: tuple[types_pb2.Interface, ...]
    neighbours: agent_pb2.ARPNeighbors
    routes: agent_pb2.Routes

    @property
    def needs_metrics(self) -> bool:
        """Whether the agent has to honour FEATURE_ROUTE_METRIC."""
        return any(route.metric for route in self.routes.Routes)


def describe(plan: Plan) -> GuestNetwork:
    """The requests for what a plan attaches."""
    names = {attachment.link.index: attachment.link.name for attachment in plan.attachments}
    return GuestNetwork(
        interfaces=tuple(_interface(attachment.link) for attachment in plan.attachments),
        neighbours=agent_pb2.ARPNeighbors(
            ARPNeighbors=[
                types_pb2.ARPNeighbor(
                    toIPAddress=types_pb2.IPAddress(family=_family(entry.address), address=entry.address),
                    device=names[entry.link],
                    lladdr=entry.mac,
                    state=entry.state,
                    flags=entry.flags,
                )
                for entry in plan.neighbours
            ]
        ),
        routes=agent_pb2.Routes(Routes=[_route(route, names[route.link]) for route in plan.routes]),
    )


def _interface(link: Link) -> types_pb2.Interface:
    return types_pb2.Interface(
        device=link.name,
        name=link.name,
        hwAddr=link.mac,
        mtu=link.mtu,
        IPAddresses=list(_addresses(link)),
        raw_flags=link.flags & IFF_NOARP,
    )


def _addresses(link: Link) -> Iterator[types_pb2.IPAddress]:
    for entry in link.addresses:
        if not entry.flags & IFA_F_DADFAILED:  # the host has found that it is another's
            yield types_pb2.IPAddress(
                family=_family(entry.address),
                address=entry.address,
                mask=str(entry.prefix),
                flags=entry.flags & IFA_F_NOPREFIXROUTE,
            )


def _route(route: Route, device: str) -> types_pb2.Route:
    default = _DEFAULT_METRIC_V6 if route.family == AF_INET6 else 0
    return types_pb2.Route(
        dest=route.destination,
        gateway=route.gateway,
        device=device,
        source=route.source,
        scope=route.scope,
        family=types_pb2.v6 if route.family == AF_INET6 else types_pb2.v4,
        flags=route.flags & RTNH_F_ONLINK,
        mtu=route.mtu,
        metric=0 if route.metric == default else route.metric,
    )


def _family(address: str) -> types_pb2.IPFamily:
    return types_pb2.v6 if family_of(address) == AF_INET6 else types_pb2.v4
