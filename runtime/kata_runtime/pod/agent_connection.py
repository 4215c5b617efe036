"""The first connection to a guest's agent: it comes while the machine boots, or the machine ends first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from kata_hypervisor.concurrency import race
from kata_runtime.errors import SandboxError
from kata_runtime.pod.health import describe

if TYPE_CHECKING:
    from kata_agent.client import AgentClient
    from kata_configuration import Configuration
    from kata_hypervisor.contract import Hypervisor, Vmm

T = TypeVar("T")


async def connect_agent(configuration: Configuration, machine: Hypervisor) -> AgentClient:
    """Connect to the agent of a machine that runs.

    Raises:
        SandboxError: the machine ended first, or the agent did not answer in the time that is configured.
    """
    from kata_agent.client import AgentClient

    table, transport = configuration.agent, machine.transport
    budget = table.reconnect_timeout_ms / 1e3

    async def connect() -> AgentClient:
        return await AgentClient.connect(
            transport,
            interval=table.dial_timeout_ms / 1e3,
            deadline=budget,
            timeout=float(table.create_container_timeout),
        )

    try:
        return await unless_ended(machine, connect)
    except (TimeoutError, OSError) as error:
        tail = machine.console_tail.strip()
        raise SandboxError(
            "agent",
            f"the guest's agent did not answer within {budget:g} s, although the VMM runs ({error}): "
            "run kata-ctl check, check the guest image, or raise reconnect_timeout_ms in [agent.kata]\n"
            f"guest console:\n{tail or '(silent)'}",
        ) from None


async def unless_ended(machine: Vmm, work: Callable[[], Awaitable[T]]) -> T:
    """Await something of the guest. Raises SandboxError with the machine's reason when that ends first."""

    async def wait() -> T:
        raise SandboxError("agent", describe(await machine.wait()))

    return await race(work, wait)
