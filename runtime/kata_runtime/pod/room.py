"""Room for the containers of a machine that grows: what their limits ask for, beside what it boots with.

Limits are asked of the machine before they are set in the guest, and a machine that is too small is resized
first: when they are set its guest has switched on what was added, and its confinement was verified again.
What shrinks comes after. What a removed container had stays, for the next.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import RpcError
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import MEMORY_STEP_MIB, MachineSize
from kata_hypervisor.errors import HypervisorError
from kata_runtime.resource import sizing
from kata_runtime.resource.sizing import Demand

if TYPE_CHECKING:
    from kata_agent.client import AgentClient
    from kata_hypervisor.contract import Hypervisor, VmSpec
    from kata_runtime.container.bundle import JsonObject

_log = logging.getLogger(__name__)

MIB = 1 << 20

LOOK = 0.05
"""Seconds between two looks at how much memory the guest's kernel has switched on."""

SLACK = 8 * MIB
"""By how much a kernel's own count may change besides: it gives back what only its boot needed."""

_MEMORY = re.compile(r'^kata_guest_meminfo\{item="MemTotal"\} ([0-9]{1,18})$', re.MULTILINE)


class Room:
    """The size of one machine, and what its containers ask of it.

    spec: what the machine was made by; with `most` it grows. agent: of its guest. keeps: with what a machine
    keeps its size that does not, "with firecracker".
    """

    def __init__(self, machine: Hypervisor, agent: AgentClient, spec: VmSpec, keeps: str = "") -> None:
        self.keeps = keeps
        self._machine = machine
        self._agent = agent
        self._spec = spec
        self._now = MachineSize(spec.vcpus, spec.memory_mib)
        self._demands: dict[str, Demand] = {}
        self._at_boot: int | None = None
        self._turn = anyio.Lock()

    @property
    def size(self) -> MachineSize:
        """What the machine has."""
        return self._now

    @property
    def most(self) -> MachineSize:
        """What it may have."""
        return self._spec.most or MachineSize(self._spec.vcpus, self._spec.memory_mib)

    @property
    def grows(self) -> bool:
        """Whether it is resized at all."""
        return self._spec.most is not None

    @contextlib.asynccontextmanager
    async def made_for(self, action: str, container_id: str, limits: JsonObject) -> AsyncIterator[None]:
        """Make the machine large enough for a container's limits, which are set within.

        action: for sentences, "create container web". limits: linux.resources, all that will be in force.
        Where the limits are not set, the container asks for what it did before.

        Raises:
            UnsupportedError: the machine may not become so large.
            HypervisorError, RpcError: the VMM or the guest did not follow; the machine is as before.
        """
        if not self.grows:
            yield
            return
        async with self._turn:
            before, after = self._demands.get(container_id), Demand.of(limits)
            try:
                await self._grow(action, container_id, after.at_least(before))
                yield
            except BaseException:
                self._demand(container_id, before)
                raise
            self._demand(container_id, after)
            if before is not None and not after.covers(before):
                await self._shrink(action)

    def leave(self, container_id: str) -> None:
        """A container is gone: what it had is the next one's."""
        self._demand(container_id, None)

    def _demand(self, container_id: str, demand: Demand | None) -> None:
        if demand is None:
            self._demands.pop(container_id, None)
        else:
            self._demands[container_id] = demand

    async def _grow(self, action: str, container_id: str, demand: Demand) -> None:
        start = self._now
        self._demand(container_id, demand)
        wanted = self._wanted(action)
        if wanted.vcpus <= start.vcpus and wanted.memory_mib <= start.memory_mib:
            return
        target = MachineSize(max(wanted.vcpus, start.vcpus), max(wanted.memory_mib, start.memory_mib))
        try:
            await self._resize(action, self._in_steps(target))
        except BaseException:
            await finish(self._restore(start))
            raise

    def _wanted(self, action: str) -> MachineSize:
        at_boot = MachineSize(self._spec.vcpus, self._spec.memory_mib)
        return sizing.grown(action, at_boot, self.most, self._demands.values())

    def _in_steps(self, size: MachineSize) -> MachineSize:
        """A size that can be asked for: a guest may have kept a part of a step."""
        steps = -(-(size.memory_mib - self._spec.memory_mib) // MEMORY_STEP_MIB)
        return MachineSize(size.vcpus, self._spec.memory_mib + steps * MEMORY_STEP_MIB)

    async def _shrink(self, action: str) -> None:
        """Take from the machine what nobody asks for any more, as far as the guest lets it go."""
        target = self._wanted(action)
        if target != self._now:
            await self._restore(target)
        if self._now != target:
            _log.warning(
                "after %s the machine keeps %s, where %s would do",
                action,
                self._now,
                target,
            )

    async def _restore(self, size: MachineSize) -> None:
        """Make the machine smaller again, as far as it goes."""
        try:
            self._now = await self._machine.resize(self._in_steps(size))
            await self._switch_on(0)
        except (HypervisorError, RpcError) as error:
            _log.warning("the machine keeps %s: %s", self._now, error)

    async def _resize(self, action: str, target: MachineSize) -> None:
        """Have the machine, and then its guest, grow. Raises HypervisorError, RpcError."""
        before = self._now
        if self._at_boot is None:
            self._at_boot = await self._guest_memory()
        self._now = await self._machine.resize(target)
        if self._now != target:
            raise HypervisorError(
                f"cannot {action}: its machine was to have {target}, and the guest has taken "
                f"{self._now}; its kernel needs the driver virtio_mem and CPU hotplug, as that of "
                "kata-ctl image build has them"
            )
        await self._switch_on(self._now.vcpus - before.vcpus)
        await self._wait_for_memory(action)
        await self._switch_on(0)
        _log.info("machine: %s, to %s", target, action)

    async def _switch_on(self, vcpus: int) -> None:
        """Have the guest use what it has. vcpus: how many more."""
        request = agent_pb2.OnlineCPUMemRequest(wait=vcpus > 0, nb_cpus=vcpus)
        await self._agent.online_cpu_mem(request)

    async def _wait_for_memory(self, action: str) -> None:
        """Wait until the guest's kernel has switched on the memory that the machine has.

        It takes memory first, and switches it on by itself afterwards.
        """
        plugged = (self._now.memory_mib - self._spec.memory_mib) * MIB
        if self._at_boot is None or not plugged:
            return
        with anyio.move_on_after(self._agent.timeout):
            while True:
                there = await self._guest_memory()
                if there is None or there >= self._at_boot + plugged - SLACK:
                    return
                await anyio.sleep(LOOK)
        raise HypervisorError(f"cannot {action}: the guest's kernel does not switch on {plugged // MIB} MiB")

    async def _guest_memory(self) -> int | None:
        """Bytes of memory that the guest's kernel manages; None from an agent that does not tell."""
        text = (await self._agent.get_metrics(agent_pb2.GetMetricsRequest())).metrics
        match = _MEMORY.search(text)
        return int(match[1]) if match else None
