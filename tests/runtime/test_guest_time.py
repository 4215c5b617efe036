"""A guest that boots gets the host's time: its machine's clock tells whole seconds only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata_agent.ttrpc.status import Code, RpcError
from pod_bed import PodBed, pod_bed


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodBed]:
    async with pod_bed(tmp_path, monkeypatch) as bed:
        yield bed


async def test_the_clock_is_set_before_anything_of_the_pod_is_in_the_guest(pod: PodBed) -> None:
    before = time.time_ns() // 1000
    await pod.tasks.create(pod.request())
    after = time.time_ns() // 1000
    (given,) = pod.agent.called("set_guest_date_time")
    assert before <= given.Sec * 10**6 + given.Usec <= after
    names = [name for name, _ in pod.agent.calls]
    assert names.index("set_guest_date_time") < names.index("create_sandbox")


async def test_an_agent_that_does_not_set_it_is_no_fault(
    pod: PodBed, caplog: pytest.LogCaptureFixture
) -> None:
    pod.agent.failures["set_guest_date_time"] = RpcError(Code.UNIMPLEMENTED, "no such method")
    await pod.tasks.create(pod.request())
    assert pod.sandbox.running
    assert "the guest's clock was not set: " in caplog.text
