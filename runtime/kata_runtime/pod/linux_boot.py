"""The boot of a Linux guest: a machine with a kernel, and the agent in it, which makes the sandbox."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kata_agent.constants import FEATURE_STREAM_IO
from kata_agent.protos import agent_pb2
from kata_hypervisor import registry
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import Disk, Hypervisor
from kata_runtime.container.guest import GuestBoot, RunStage
from kata_runtime.pod import machine_spec
from kata_runtime.pod.agent_connection import connect_agent, unless_ended
from kata_runtime.pod.linux_guest import LinuxGuest
from kata_runtime.pod.reseed import Reseed
from kata_runtime.resource import network
from kata_runtime.resource.network import PodNetwork

if TYPE_CHECKING:
    from kata_agent.client import AgentClient
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.bundle import JsonObject
    from kata_runtime.identity import SandboxIdentity


class LinuxBoot(GuestBoot):
    """A Linux guest that is still to come.

    spec: the OCI specification of the sandbox's first container, for size, hostname and disks. disks: those
    of the machine besides its image.

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
    ) -> None:
        self.machine = registry.create(configuration.hypervisor_name, configuration.hypervisor, broker)
        self._broker = broker
        self._spec = spec
        self._network = PodNetwork()
        self._configuration = configuration
        self._machine_spec = machine_spec.machine_of(configuration, identity, spec, disks)
        self._request = machine_spec.request_of(configuration, identity, spec)
        # Random numbers are had now: a sealed process gets none.
        self._reseed = Reseed() if self._machine_spec.template is not None else None

    async def prepare(self) -> None:
        """See GuestBoot."""
        taps = self.machine.capabilities.tap_descriptors
        self._network = await network.attach(
            self._broker,
            self._spec,
            self._configuration.runtime.internetworking_model,
            queues=self._configuration.hypervisor.tap_queues,
            hypervisor="" if taps else self._configuration.hypervisor_name,
        )
        try:
            await self.machine.prepare(replace(self._machine_spec, taps=self._network.taps))
        finally:
            self._network.close()

    async def start(self, run_stage: RunStage) -> LinuxGuest:
        """See GuestBoot."""
        agent = await run_stage("agent", self._run())
        try:
            streams = await run_stage("guest", self._prepare_guest(agent))
        except BaseException:
            await finish(agent.aclose())
            raise
        return LinuxGuest(self._configuration, self.machine, agent, streams=streams)

    async def _run(self) -> AgentClient:
        await self.machine.run()
        return await connect_agent(self._configuration, self.machine)

    async def _prepare_guest(self, agent: AgentClient) -> bool:
        """Make the guest a sandbox; return whether its agent has streams."""
        streams = await unless_ended(self.machine, lambda: self._create_sandbox(agent))
        await self.machine.verify_confinement()
        return streams

    async def _create_sandbox(self, agent: AgentClient) -> bool:
        if self._reseed is not None:
            await self._reseed.give(agent)
        details = await agent.get_guest_details(agent_pb2.GuestDetailsRequest(mem_block_size=True))
        features = details.agent_details.extra_features
        await agent.create_sandbox(self._request)
        await network.give(self._network, agent, features)
        return FEATURE_STREAM_IO in features

    async def stop(self) -> None:
        """See GuestBoot."""
        await self.machine.stop()
