"""What a machine is given of what the network program has attached: open taps, or their names."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import pytest

from kata_agent.client import AgentClient
from kata_runtime.network.model import Namespace
from kata_runtime.network.plan import TCFILTER, plan
from kata_runtime.resource import network
from network_program import ETH0, USER, NetworkProgram


@pytest.mark.parametrize("named", [False, True])
async def test_a_tap_has_its_queue_or_its_name(named: bool) -> None:
    with closing(NetworkProgram(ETH0)) as broker:
        found = await network.attach(broker, TCFILTER, named=named)  # type: ignore[arg-type]
    try:
        (tap,) = found.taps
        assert (tap.name, tap.mac, tap.mtu) == ("tap0_kata", ETH0.mac, ETH0.mtu)
        assert len(tap.fds) == (0 if named else 1)
    finally:
        found.close()
    assert broker.asked["named"] is named
    assert broker.asked["owner"] == (USER if named else 0)


class SlowAgent:
    """Answers what it is asked when all are waited for, as guests that share a host's processors do."""

    def __init__(self, together: int) -> None:
        self.asked: list[tuple[str, float | None]] = []
        self._all = asyncio.Barrier(together)

    async def call(
        self, _service: str, name: str, _request: object, answer: Any, *, timeout: float | None
    ) -> Any:
        """See Client.call."""
        self.asked.append((name, timeout))
        await self._all.wait()
        return answer()


async def test_guests_that_start_together_have_the_configured_patience_for_each_call() -> None:
    many, patience = 20, 4711.0
    found = network.PodNetwork(plan(Namespace(links=(ETH0,)), TCFILTER))
    slow = SlowAgent(many)
    clients = [AgentClient(slow, timeout=patience) for _ in range(many)]  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(network.give(found, client, ()))
    names = [name for name, _ in slow.asked]
    assert names.count("UpdateInterface") == many, "asked once: an answer that comes late is no refusal"
    assert {timeout for _, timeout in slow.asked} == {patience}


async def test_what_a_guest_lacks_after_it_is_configured_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = network.PodNetwork(plan(Namespace(links=(ETH0,)), TCFILTER))
    await network.give(found, AgentClient(SlowAgent(1), timeout=1), ())  # type: ignore[arg-type]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("the guest's network differs from the pod's: ")
    assert ETH0.name in record.message
