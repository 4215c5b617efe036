"""The supervision of a running Linux guest: whatever fails first is the reason of its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from kata_agent.protos import agent_pb2, health_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.concurrency import race
from kata_hypervisor.contract import VmExit, Vmm

if TYPE_CHECKING:
    from kata_agent.client import AgentClient

_log = logging.getLogger(__name__)

HEALTH_INTERVAL = 30.0
MISSES = 3
"""Checks in a row without an answer that end a pod: a guest whose CPUs are busy elsewhere may miss one."""

PAUSE = 1.0
"""Seconds until a guest that had no room for a request is asked again."""

# The guest's kernel takes a moment to reset the machine after its init, the agent, has died.
GUEST_DEATH_GRACE = 2.0


class HealthCheck:
    """Supervises a machine and its agent.

    health_timeout: seconds for a health check. on_oom: called with the container's id at each OOM event.
    """

    def __init__(
        self, machine: Vmm, agent: AgentClient, health_timeout: float, on_oom: Callable[[str], None]
    ) -> None:
        self._machine = machine
        self._agent = agent
        self._health_timeout = health_timeout
        self._on_oom = on_oom

    async def failure(self) -> str:
        """Wait until the guest cannot go on; return the reason, whose first line is for users."""
        return await race(self._machine_end, self._agent_end, self._failed_check, self._report_oom)

    async def _machine_end(self) -> str:
        return describe(await self._machine.wait())

    async def _agent_end(self) -> str:
        await self._agent.wait_closed()
        with anyio.move_on_after(GUEST_DEATH_GRACE):
            await self._machine.wait()
            await anyio.sleep_forever()  # _machine_end has the better reason
        return (
            f"the guest's agent closed its connection\nguest console:\n{self._machine.console_tail.strip()}"
        )

    async def _failed_check(self) -> str:
        missed = 0
        while True:
            await anyio.sleep(HEALTH_INTERVAL)
            try:
                await self._agent.check(health_pb2.CheckRequest(), timeout=self._health_timeout)
            except RpcError as error:
                # A guest that says it is busy is alive.
                missed = 0 if error.code is Code.RESOURCE_EXHAUSTED else missed + 1
                if missed == MISSES:
                    return f"the guest's agent failed {MISSES} health checks in a row: {error}"
                _log.warning("health check of the guest's agent: %s", error)
            else:
                missed = 0

    async def _report_oom(self) -> str:
        """Report OOM events for ever; an agent that has none does not end the sandbox."""
        while True:
            try:
                event = await self._agent.get_oom_event(agent_pb2.GetOOMEventRequest())
            except RpcError as error:
                if error.code is Code.RESOURCE_EXHAUSTED:
                    await anyio.sleep(PAUSE)
                    continue
                if error.code not in (Code.UNAVAILABLE, Code.UNIMPLEMENTED):
                    _log.warning("OOM events of the guest are not reported any more: %s", error)
                await anyio.sleep_forever()
            else:
                self._on_oom(event.container_id)


def describe(end: VmExit) -> str:
    """The reason first, then the last output of the processes and of the guest."""
    parts = [end.reason]
    parts += [f"{heading}:\n{text.strip()}" for heading, text in end.diagnostics.items() if text.strip()]
    return "\n".join(parts)
