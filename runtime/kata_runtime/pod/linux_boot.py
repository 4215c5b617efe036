"""The boot of a Linux guest: a machine with a kernel, and the agent in it, which makes the sandbox."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from kata_agent.constants import FEATURE_PORT_FORWARD, FEATURE_STREAM_IO
from kata_agent.protos import agent_pb2
from kata_agent.transport import open_stream
from kata_agent.transports import VsockTransport
from kata_agent.ttrpc.status import RpcError
from kata_configuration.bind_mount import BindMount
from kata_hypervisor import registry
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import Disk, Hypervisor
from kata_runtime.container.guest import GuestBoot, RunStage
from kata_runtime.container.guest_spec import NO_SETTINGS, PodSettings
from kata_runtime.pod import machine_spec
from kata_runtime.pod.agent_connection import connect_agent, unless_ended
from kata_runtime.pod.host_cpus import HostCpus
from kata_runtime.pod.linux_guest import LinuxGuest
from kata_runtime.pod.port_forwarding import Forwarder
from kata_runtime.pod.reseed import Reseed, give_time
from kata_runtime.pod.room import Room
from kata_runtime.resource import network
from kata_runtime.resource.network import PodNetwork
from kata_runtime.resource.shares import share_with_guest

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

    from kata_agent.client import AgentClient
    from kata_agent.transport import GuestTransport
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.bundle import JsonObject
    from kata_runtime.identity import SandboxIdentity

_log = logging.getLogger(__name__)


class LinuxBoot(GuestBoot):
    """A Linux guest that is still to come.

    spec: the OCI specification of the sandbox's first container, for size, hostname and disks. disks: those
    of the machine besides its image. settings: of a sandbox without a container of its own, see LinuxGuest.
    first: how many disks the first container gets when the machine runs; None: there is no such container.

    Raises:
        NotSupportedError: the configured hypervisor runs no Linux guests.
    """

    machine: Hypervisor

    def __init__(
        self,
        configuration: Configuration,
        identity: SandboxIdentity,
        broker: Broker,
        spec: JsonObject,
        disks: tuple[Disk, ...] = (),
        *,
        settings: PodSettings = NO_SETTINGS,
        first: int | None = None,
    ) -> None:
        self.machine = registry.create(configuration.hypervisor_name, configuration.hypervisor, broker)
        self._broker = broker
        self._identity = identity
        self._network = PodNetwork()
        self._forwarder = Forwarder((), self._connect_guest)
        self._configuration = configuration
        self._settings = settings
        capabilities = self.machine.capabilities
        shares = configuration.hypervisor.shares_files
        plugs = capabilities.device_hotplug if shares else capabilities.block_hotplug
        spares = machine_spec.spare_disks(spec, first) if plugs else 0
        self._machine_spec = machine_spec.machine_of(
            configuration, identity, spec, disks, spares=spares, resizable=capabilities.resize
        )
        self._takes_devices = capabilities.device_hotplug and spares > 0
        later_memory = self._machine_spec.later_memory_mib > 0
        self._request = machine_spec.request_of(configuration, identity, spec, later_memory=later_memory)
        self._request.dns.extend(settings.name_servers)
        # Random numbers are had now: a sealed process gets none.
        self._reseed = Reseed() if self._machine_spec.template is not None else None

    async def prepare(self) -> None:
        """See GuestBoot."""
        runtime = self._configuration.runtime
        mounts = [BindMount.parse(text) for text in runtime.sandbox_bind_mounts]
        await share_with_guest(self._broker, self._identity.shared_directory, mounts)
        self._network = await network.attach(
            self._broker,
            runtime.internetworking_model,
            described=network.described_at(runtime.dan_conf, self._identity.id),
            queues=self._configuration.hypervisor.tap_queues,
            spoof_protection=runtime.spoof_protection,
            named=not self.machine.capabilities.tap_descriptors,
        )
        self._forwarder = Forwarder(self._network.listeners, self._connect_guest)
        if self._takes_devices:
            self._broker.later.add("disks")
            if self.machine.capabilities.device_nodes:
                self._broker.later.add("nodes")
        try:
            await self.machine.prepare(replace(self._machine_spec, taps=self._network.taps))
        finally:
            self._network.close()

    async def start(self, run_stage: RunStage) -> LinuxGuest:
        """See GuestBoot."""
        agent = await run_stage("agent", self._run())
        try:
            features = await run_stage("guest", self._prepare_guest(agent))
        except BaseException:
            await finish(agent.aclose())
            raise
        if sentence := open_to_everybody(features, self.machine.transport):
            _log.warning("%s", sentence)
        forwards = FEATURE_PORT_FORWARD in features
        if not forwards:
            self._forwarder.close()  # a connection is refused then
        room = Room(self.machine, agent, self._machine_spec, self._keeps_size)
        pinning = self._configuration.runtime.enable_vcpus_pinning
        return LinuxGuest(
            self._configuration,
            self.machine,
            agent,
            streams=FEATURE_STREAM_IO in features,
            room=room,
            cpus=HostCpus(self._broker, lambda: room.size.vcpus, pinning=pinning),
            forwarder=self._forwarder if forwards else None,
            settings=self._settings,
        )

    @property
    def _keeps_size(self) -> str:
        """With what the machine keeps its size; "" for one that grows."""
        if self._machine_spec.most is not None:
            return ""
        if self._configuration.runtime.static_sandbox_resource_mgmt:
            return "with static_sandbox_resource_mgmt"
        return f"with {self._configuration.hypervisor_name}"

    async def _connect_guest(self, port: int) -> tuple[socket.socket, int]:
        patience = float(self._configuration.agent.create_container_timeout)
        return await open_stream(self.machine.transport, port, patience)

    async def _run(self) -> AgentClient:
        await self.machine.run()
        return await connect_agent(self._configuration, self.machine)

    async def _prepare_guest(self, agent: AgentClient) -> Collection[str]:
        """Make the guest a sandbox; return the features of its agent."""
        features = await unless_ended(self.machine, lambda: self._create_sandbox(agent))
        await self.machine.verify_confinement()
        return features

    async def _create_sandbox(self, agent: AgentClient) -> Collection[str]:
        if self._reseed is not None:
            await self._reseed.give(agent)
        else:
            await _set_clock(agent)
        details = await agent.get_guest_details(agent_pb2.GuestDetailsRequest(mem_block_size=True))
        features = details.agent_details.extra_features
        await agent.create_sandbox(self._request)
        await network.give(self._network, agent, features)
        return features

    async def stop(self) -> None:
        """See GuestBoot."""
        self._forwarder.close()
        await self.machine.stop()


def open_to_everybody(features: Collection[str], transport: GuestTransport) -> str:
    """A sentence where other users of this host can call a guest's agent too; else nothing.

    features: those of the agent. Only this project's takes calls from root's ports of vsock alone.
    """
    if FEATURE_STREAM_IO in features or not isinstance(transport, VsockTransport):
        return ""
    return (
        "each user of this host can call the guest's agent, and is root in the guest: it is not this "
        "project's, and takes calls over the kernel's vsock from everybody; use an image with this project's "
        "agent, or a hypervisor with a socket of its own, such as clh or firecracker"
    )


async def _set_clock(agent: AgentClient) -> None:
    """A guest whose agent does not let it be set has the time of its machine's clock, to a second or two."""
    try:
        await give_time(agent)
    except RpcError as error:
        _log.warning("the guest's clock was not set: %s", error)
