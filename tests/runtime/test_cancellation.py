"""A caller that goes away: its request is cancelled as the ttrpc server does it, at every await in turn.

What was begun is then either done, here and in the guest, or undone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.container.states import State as ProcessState
from kata_runtime.errors import NotFoundError
from kata_runtime.pod.states import State
from kata_runtime.stdio.files import StdioPaths
from pod_bed import PodBed, pod_bed, settle

MOST_TURNS = 500


async def cancelled_after(turns: int, call: Awaitable[Any]) -> bool:
    """Make a call, and cancel it after so many turns of the event loop; whether that came in time."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    in_time = task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() == in_time
    return in_time


async def at_every_await(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[PodBed], Awaitable[None]],
    call: Callable[[PodBed], Awaitable[Any]],
    check: Callable[[PodBed, bool], Awaitable[None]],
) -> None:
    """Cancel a call one turn later in each new pod, until it is done before; `check` gets whether it was."""
    for turns in range(1, MOST_TURNS):
        async with pod_bed(directory, monkeypatch) as pod:
            await prepare(pod)
            in_time = await cancelled_after(turns, call(pod))
            await check(pod, in_time)
        if not in_time:
            assert turns > 2
            return
    raise AssertionError("it was never done")


async def nothing(pod: PodBed) -> None:
    return None


async def created(pod: PodBed) -> None:
    await pod.tasks.create(pod.request())


async def running(pod: PodBed) -> None:
    await pod.started()


async def with_exec(pod: PodBed) -> None:
    await pod.started()
    await pod.tasks.exec("web", "job", {"args": ["true"], "cwd": "/"}, StdioPaths())


async def stopped(pod: PodBed) -> None:
    await pod.started()
    pod.agent.end("web", 0)
    await pod.tasks.process("web", "").wait()


async def test_a_create_is_done_or_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(pod: PodBed, in_time: bool) -> None:
        if not in_time:
            assert pod.sandbox.state is State.RUNNING
            return
        assert pod.tasks.empty
        assert (pod.broker.mounted, pod.broker.made, pod.events) == ([], [], [])
        assert pod.sandbox.state in (State.NEW, State.ENDED)
        assert pod.machines_made == 0 or pod.machine.stops
        if pod.sandbox.state is State.ENDED:
            assert "cancelled" in pod.sandbox.report()["reason"]

    await at_every_await(tmp_path, monkeypatch, nothing, lambda pod: pod.tasks.create(pod.request()), check)


async def test_a_start_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(pod: PodBed, in_time: bool) -> None:
        began = bool(pod.agent.called("start_container"))
        state = ProcessState.RUNNING if began else ProcessState.CREATED
        assert pod.tasks.process("web", "").state is state
        assert pod.topics() == ["TaskCreate", "TaskStart"][: 1 + began]

    await at_every_await(tmp_path, monkeypatch, created, lambda pod: pod.tasks.start("web", ""), check)


async def test_the_exit_of_an_exec_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(pod: PodBed, in_time: bool) -> None:
        process = pod.tasks.process("web", "job")
        assert (process.state is ProcessState.RUNNING) == bool(pod.agent.called("exec_process"))
        if process.state is ProcessState.RUNNING:
            pod.agent.end("job", 3)
            assert (await process.wait()).status == 3
            assert pod.topics()[-2:] == ["TaskExecStarted", "TaskExit"]

    await at_every_await(tmp_path, monkeypatch, with_exec, lambda pod: pod.tasks.start("web", "job"), check)


async def test_a_pause_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(pod: PodBed, in_time: bool) -> None:
        paused = pod.tasks.process("web", "").state is ProcessState.PAUSED
        assert paused == bool(pod.agent.called("pause_container"))
        assert pod.topics().count("TaskPaused") == paused

    await at_every_await(tmp_path, monkeypatch, running, lambda pod: pod.tasks.pause("web"), check)


async def test_a_delete_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(pod: PodBed, in_time: bool) -> None:
        await settle()
        if pod.agent.called("remove_container"):
            with pytest.raises(NotFoundError):
                pod.tasks.process("web", "")
            assert pod.tasks.empty
            assert pod.topics()[-1] == "TaskDelete"
            assert (pod.broker.mounted, pod.broker.made) == ([], [])
            assert pod.sandbox.state is State.ENDED
        else:
            assert pod.tasks.process("web", "").state is ProcessState.STOPPED

    await at_every_await(tmp_path, monkeypatch, stopped, lambda pod: pod.tasks.delete("web", ""), check)


async def test_a_stop_ends_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(pod: PodBed, in_time: bool) -> None:
        if pod.sandbox.state is State.ENDED:
            assert pod.machine.stops
            await pod.sandbox.wait_ended()

    await at_every_await(tmp_path, monkeypatch, running, lambda pod: pod.sandbox.stop(), check)
