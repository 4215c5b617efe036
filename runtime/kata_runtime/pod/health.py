"""The watch over a running sandbox: whatever ends its guest first is the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from kata_agent.protos import agent_pb2, health_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.contract import VmExit, Vmm
from kata_runtime.concurrency import race

if TYPE_CHECKING:
    from kata_agent.client import AgentClient

_log = logging.getLogger(__name__)

HEALTH_INTERVAL = 30.0
# The guest's kernel takes a moment to reset the machine after its init, the agent, has died.
GUEST_DEATH_GRACE = 2.0


class HealthCheck:
    """Watches a machine and its agent.

    health_timeout: seconds for a health check. on_oom: called with the container's id at each OOM event.
    """

    def __init__(
        self, machine: Vmm, agent: AgentClient, health_timeout: float, on_oom: Callable[[str], None]
    ) -> None:
        self._machine = machine
        self._agent = agent
        self._health_timeout = health_timeout
        self._on_oom = on_oom

    async def end(self) -> str:
        """Wait for the guest's end; returns the reason, its first line for users."""
        return await race(self._machines_end, self._agents_end, self._illness, self._report_oom)

    async def _machines_end(self) -> str:
        return describe(await self._machine.wait())

    async def _agents_end(self) -> str:
        await self._agent.wait_closed()
        with anyio.move_on_after(GUEST_DEATH_GRACE):
            await self._machine.wait()
            await anyio.sleep_forever()  # the machine's own watcher knows the better reason
        return f"the guest agent closed its connection\nguest console:\n{self._machine.console_tail.strip()}"

    async def _illness(self) -> str:
        while True:
            await anyio.sleep(HEALTH_INTERVAL)
            try:
                await self._agent.check(health_pb2.CheckRequest(), timeout=self._health_timeout)
            except RpcError as error:
                return f"the guest agent failed its health check: {error}"

    async def _report_oom(self) -> str:
        """Report OOM events for ever; an agent that has none does not end the sandbox."""
        while True:
            try:
                event = await self._agent.get_oom_event(agent_pb2.GetOOMEventRequest())
            except RpcError as error:
                if error.code not in (Code.UNAVAILABLE, Code.UNIMPLEMENTED):
                    _log.warning("no more OOM events: %s", error)
                await anyio.sleep_forever()
            else:
                self._on_oom(event.container_id)


def describe(end: VmExit) -> str:
    """The reason first, then what the processes and the guest last said."""
    parts = [end.reason]
    parts += [f"{heading}:\n{text.strip()}" for heading, text in end.diagnostics.items() if text.strip()]
    return "\n".join(parts)
