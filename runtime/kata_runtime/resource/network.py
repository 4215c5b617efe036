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
from kata_runtime.network.exchange import Attached, Request
from kata_runtime.network.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from kata_agent.client import AgentClient
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.bundle import JsonObject

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What was attached. taps: for the machine, their descriptors ours to close.

    listeners: of connections to the namespace's loopback, the taker's to close.
    """

    plan: Plan = field(default_factory=Plan)
    taps: tuple[Tap, ...] = ()
    listeners: tuple[socket.socket, ...] = ()

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


async def learn(broker: Broker, spec: JsonObject, *, outside: bool) -> int:
    """Have the namespace of a pod learned, or made; return the pid of the pod's init, which is in it.

    outside: whether the VMM stays in the host's.

    Raises:
        UnsupportedError: it cannot be a pod's, or is the host's.
    """
    try:
        return await broker.learn_network(namespace_of(spec) or None, outside=outside)
    except RequestFailedError as error:
        raise UnsupportedError(str(error)) from None


def described_at(directory: Path | None, sandbox: str) -> str:
    """Where a file may describe a sandbox's network; empty for nowhere. directory: dan_conf."""
    return str(directory / f"{sandbox}.json") if directory is not None else ""


async def is_known(broker: Broker, described: str) -> bool:
    """Whether the pod's network is there: in its namespace, or described."""
    return os.path.lexists(described) or (await broker.network_state())[1]


async def attach(
    broker: Broker,
    model: str,
    *,
    described: str = "",
    queues: int = 1,
    spoof_protection: bool = True,
    named: bool = False,
    header: bool = True,
    forward: bool = True,
    hypervisor: str = "",
) -> PodNetwork:
    """Attach the pod's namespace; nothing is attached where it has no interface.

    model: one of `planning`. described: a file whose network is attached in place of the namespace's, where
    there is one. queues, spoof_protection, header, forward: see `attachment.Wanted`. named: whether the VMM,
    which is the pod's user, opens its taps by their names. hypervisor: the name of one that takes none, or
    empty.

    Raises:
        UnsupportedError: it holds an interface that cannot be attached.
    """
    try:
        if os.path.lexists(described):
            if named or hypervisor:
                refuse_described(described)
            return await _open_described(broker, described, queues)
        interfaces, _ = await broker.network_state()
        if not interfaces:
            return PodNetwork()
        request = exchange.attach(
            model,
            queues=queues,
            header=header,
            named=named,
            owner=broker.user if named else 0,
            forward=forward,
            spoof_protection=spoof_protection,
        )
        network = await _exchange(broker, model, request, hypervisor)
    except (NetworkError, RequestFailedError) as error:
        raise UnsupportedError(str(error)) from None
    for line in network.plan.warnings:
        _log.warning("%s", line)
    return network


def refuse_described(path: str) -> None:
    """Raise UnsupportedError where a file describes a network for a guest that takes none of the host's taps.

    A VMM that opens taps by name is in the pod's namespace, and finds none of the host's there.
    """
    if os.path.lexists(path):
        raise UnsupportedError(
            f"cannot attach the network of {path}: this hypervisor, or a unikernel, takes no taps of the "
            "host; remove the file, or use another hypervisor with a Linux guest"
        )


async def _open_described(broker: Broker, path: str, queues: int) -> PodNetwork:
    from kata_runtime.network import described  # with pydantic, which few pods need so early

    found = described.read(path)
    taps: list[Tap] = []
    try:
        for attachment, own in zip(found.plan.attachments, found.queues, strict=True):
            fds = tuple(await broker.open_tap(attachment.tap, own or queues))
            link = attachment.link
            taps.append(Tap(f"net{len(taps)}", attachment.tap, link.mac, fds, link.mtu))
    except BaseException:
        PodNetwork(taps=tuple(taps)).close()
        raise
    return PodNetwork(found.plan, tuple(taps))


async def _exchange(broker: Broker, model: str, request: Request[Attached], hypervisor: str) -> PodNetwork:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            await broker.attach_network(theirs)
        ours.setblocking(False)
        if hypervisor:
            namespace = await exchange.ask_async(ours, exchange.dump())
            return PodNetwork(_unattachable(planning.plan(namespace, model), hypervisor))
        attached = await exchange.ask_async(ours, request)
    pairs = zip(attached.plan.attachments, attached.queues, strict=True)
    return PodNetwork(
        attached.plan,
        tuple(
            Tap(f"net{number}", attachment.tap, attachment.link.mac, fds, attachment.link.mtu)
            for number, (attachment, fds) in enumerate(pairs)
        ),
        tuple(socket.socket(fileno=fd) for fd in attached.listeners),
    )


def _unattachable(plan: Plan, hypervisor: str) -> Plan:
    """A plan that attaches nothing, as it is. Raises UnsupportedError for any other."""
    if names := ", ".join(attachment.link.name for attachment in plan.attachments):
        raise UnsupportedError(
            f"cannot attach {names} of the pod's network namespace: this runtime attaches no network to "
            f"guests of {hypervisor}; use another hypervisor, or set internetworking_model to "
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
