"""What ends a pod whose agent does not answer as it should, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_configuration.models.firecracker import Firecracker
from kata_hypervisor.contract import Capabilities
from kata_runtime.pod import health, linux_guest
from kata_runtime.pod.health import MISSES, HealthCheck
from pod_bed import fixed_room, no_cpus
from tables import make_table

BUSY = RpcError(Code.RESOURCE_EXHAUSTED, "too many requests at once")
LATE = RpcError(Code.DEADLINE_EXCEEDED, "no answer within 0.1 s")


class Agent:
    """An agent whose answers are given: an exception, or None for a good one. It is silent after the last."""

    def __init__(self, *answers: RpcError | None) -> None:
        self._answers = list(answers)
        self.all_given = anyio.Event()

    async def check(self, _: object, *, timeout: float) -> None:
        await self._next()

    async def get_oom_event(self, _: object) -> agent_pb2.OOMEvent:
        await self._next()
        return agent_pb2.OOMEvent(container_id="one")

    async def wait_process(self, _: object) -> agent_pb2.WaitProcessResponse:
        await self._next()
        return agent_pb2.WaitProcessResponse(status=7)

    async def _next(self) -> None:
        if not self._answers:
            self.all_given.set()
            await anyio.sleep_forever()
        if (answer := self._answers.pop(0)) is not None:
            raise answer


def checking(agent: Agent, on_oom: Callable[[str], None] = print) -> Any:
    machine: Any = SimpleNamespace()
    given: Any = agent
    return HealthCheck(machine, given, 0.1, on_oom)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "HEALTH_INTERVAL", 0)
    monkeypatch.setattr(health, "PAUSE", 0)
    monkeypatch.setattr(linux_guest, "PAUSE", 0)


async def test_checks_missed_in_a_row_end_a_pod() -> None:
    agent = Agent(*[LATE] * (MISSES - 1), None, *[LATE] * MISSES)
    reason = await checking(agent)._failed_check()
    assert reason == f"the guest's agent failed {MISSES} health checks in a row: {LATE}"
    assert not agent._answers


@pytest.mark.parametrize("answers", [[LATE], [BUSY] * 9, [LATE, LATE, BUSY, LATE, LATE], [LATE, None] * 9])
async def test_one_missed_check_and_a_busy_guest_do_not(answers: list[RpcError | None]) -> None:
    agent = Agent(*answers)
    task = asyncio.create_task(checking(agent)._failed_check())
    waiting = asyncio.create_task(agent.all_given.wait())
    await asyncio.wait([task, waiting], return_when="FIRST_COMPLETED")
    assert waiting.done()
    assert not task.done()
    task.cancel()


async def test_a_busy_guest_is_asked_again_for_its_events() -> None:
    agent = Agent(BUSY, BUSY, None)
    seen: list[str] = []
    task = asyncio.create_task(checking(agent, seen.append)._report_oom())
    await asyncio.wait([task, asyncio.create_task(agent.all_given.wait())], return_when="FIRST_COMPLETED")
    assert seen == ["one"]
    task.cancel()


async def test_a_busy_guest_is_asked_again_for_an_exit_status() -> None:
    agent = Agent(BUSY, BUSY, None)
    configuration: Any = SimpleNamespace(
        hypervisor=make_table(Firecracker, kernel="/k"),  # which shares no files
        runtime=SimpleNamespace(disable_guest_seccomp=False),
        agent=SimpleNamespace(health_check_request_timeout_ms=1000),
    )
    machine: Any = SimpleNamespace(capabilities=Capabilities())
    given: Any = agent
    guest = linux_guest.LinuxGuest(
        configuration, machine, given, streams=True, room=fixed_room(), cpus=no_cpus()
    )
    process: Any = SimpleNamespace(container_id="one", guest_id="one")
    assert await guest.wait_process(process) == 7
