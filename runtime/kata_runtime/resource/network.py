"""A pod's network: which namespace it has, what of it is attached to the machine, and what the guest gets.

What the namespace holds reaches the guest, or the pod is refused with a sentence that names it. Only where
the operator configured it so, the guest goes without, and a warning names what it lacks.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kata_agent.constants import FEATURE_ROUTE_METRIC
from kata_agent.protos import agent_pb2
from kata_hypervisor.contract import Tap
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.network import comparison, exchange, guest, namespaces
from kata_runtime.network import plan as planning
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Collection

    from kata_agent.client import AgentClient
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.bundle import JsonObject

_log = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds that the network program may take."""


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What was attached. taps: for the machine, their descriptors ours to close."""

    plan: Plan = field(default_factory=Plan)
    taps: tuple[Tap, ...] = ()

    def close(self) -> None:
        """Close the taps' descriptors; the machine has its own by then."""
        for tap in self.taps:
            for fd in tap.fds:
                os.close(fd)


def namespace_of(spec: JsonObject) -> str:
    """The path of the network namespace of a specification; empty for one that is made for the pod.

    Raises:
        UnsupportedError: the pod is to be in the host's network: there is no entry (config-linux.md of the
            OCI runtime specification).
    """
    for entry in (spec.get("linux") or {}).get("namespaces") or ():
        if isinstance(entry, dict) and entry.get("type") == "network":
            path = entry.get("path") or ""
            if not isinstance(path, str) or (path and not path.startswith("/")):
                raise InvalidRequestError(f"the path of the network namespace is not absolute: {path!r}")
            return path
    raise UnsupportedError(namespaces.host_network("its specification has no network namespace"))


async def attach(
    broker: Broker, spec: JsonObject, model: str, *, queues: int = 1, hypervisor: str = ""
) -> PodNetwork:
    """Attach the namespace of a pod; nothing is attached where it has none by a path.

    model: one of `planning`. hypervisor: the name of one that takes no taps as descriptors, or empty.

    Raises:
        UnsupportedError: it holds an interface that cannot be attached, or is the host's.
    """
    path = namespace_of(spec)
    if not path:
        return PodNetwork()
    try:
        network = await _exchange(broker, path, model, queues, hypervisor)
    except (NetworkError, RequestFailedError) as error:
        raise UnsupportedError(str(error)) from None
    for line in network.plan.warnings:
        _log.warning("%s", line)
    return network


async def _exchange(broker: Broker, path: str, model: str, queues: int, hypervisor: str) -> PodNetwork:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            await broker.attach_network(path, theirs)
        # It takes a fifth of a second, in which this process has nothing else to do; no thread, since the
        # seal is put on a process that had none.
        ours.settimeout(TIMEOUT)
        if hypervisor:
            namespace = exchange.dump(ours)
            return PodNetwork(_unattachable(planning.plan(namespace, model), hypervisor))
        attached = exchange.attach(ours, model, queues=queues)
    assert not attached.listeners
    pairs = zip(attached.plan.attachments, attached.queues, strict=True)
    return PodNetwork(
        attached.plan,
        tuple(
            Tap(f"net{number}", attachment.tap, attachment.link.mac, fds)
            for number, (attachment, fds) in enumerate(pairs)
        ),
    )


def _unattachable(plan: Plan, hypervisor: str) -> Plan:
    """A plan that attaches nothing, as it is. Raises UnsupportedError for any other."""
    if names := ", ".join(attachment.link.name for attachment in plan.attachments):
        raise UnsupportedError(
            f"cannot attach {names} of the pod's network namespace: this runtime attaches no network to "
            f"guests of {hypervisor}; use qemu, or set internetworking_model to "
            f'"{planning.NONE}" for pods without a network'
        )
    return plan


async def give(network: PodNetwork, agent: AgentClient, features: Collection[str]) -> None:
    """Configure the guest's interfaces, neighbours and routes, and compare the outcome once.

    features: those of the agent.

    Raises:
        UnsupportedError: the agent lacks what the routes need. RpcError: it refuses.
    """
    if not network.plan.attachments:
        return
    wanted = guest.describe(network.plan)
    if wanted.needs_metrics and FEATURE_ROUTE_METRIC not in features:
        raise UnsupportedError(
            "cannot give the guest its routes: they have metrics, which its agent does not know; "
            "use the image of this version"
        )
    for interface in wanted.interfaces:
        await agent.update_interface(agent_pb2.UpdateInterfaceRequest(interface=interface))
    if wanted.neighbours.ARPNeighbors:
        await agent.add_arp_neighbors(agent_pb2.AddARPNeighborsRequest(neighbors=wanted.neighbours))
    if wanted.routes.Routes:
        await agent.update_routes(agent_pb2.UpdateRoutesRequest(routes=wanted.routes))
    for line in comparison.differences(
        network.plan,
        await agent.list_interfaces(agent_pb2.ListInterfacesRequest()),
        await agent.list_routes(agent_pb2.ListRoutesRequest()),
    ):
        _log.warning("the guest's network differs from the pod's: %s", line)
