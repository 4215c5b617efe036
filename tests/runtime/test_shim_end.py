"""When a shim ends without being asked to: its pod is over, and nobody has anything of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kata_hypervisor.concurrency import race
from kata_runtime.shim import server


class Pod:
    """What is asked of a pod. looks: how often it was."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.has_container = False
        self.looks = 0

    async def wait_ended(self) -> None:
        await self.over.wait()

    @property
    def empty(self) -> bool:
        self.looks += 1
        return not self.has_container


async def ends(pod: Any, *, created: bool, looks: int) -> bool:
    """Whether the shim ends before it has looked so many times."""

    async def look() -> None:
        while pod.looks < looks:
            await anyio.lowlevel.checkpoint()

    async def end() -> None:
        await server._until_over(pod, pod, SimpleNamespace(created=created))  # type: ignore[arg-type]

    return await race(lambda: said(end, True), lambda: said(look, False))


async def said(function: Any, value: bool) -> bool:
    await function()
    return value


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> Pod:
    monkeypatch.setattr(server, "LINGER", 0.0)
    return Pod()


async def test_it_ends_at_the_second_look_without_a_container(pod: Pod) -> None:
    pod.over.set()
    assert await ends(pod, created=False, looks=100)
    assert pod.looks == 2


async def test_it_stays_while_there_is_a_container_and_ends_after_it(pod: Pod) -> None:
    pod.has_container = True
    pod.over.set()
    assert not await ends(pod, created=False, looks=100)
    pod.has_container = False
    assert await ends(pod, created=False, looks=200)


async def test_whoever_created_the_sandbox_ends_its_shim(pod: Pod) -> None:
    pod.over.set()
    assert not await ends(pod, created=True, looks=100)


async def test_a_pod_that_is_not_over_is_not_looked_at(pod: Pod) -> None:
    with anyio.move_on_after(0.05):
        await ends(pod, created=False, looks=1)
    assert pod.looks == 0
