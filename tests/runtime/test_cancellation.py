"""A caller that goes away: its request is cancelled as the ttrpc server does it, at every await in turn.

What was begun is then either done, here and in the guest, or undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.container.process import Process
from kata_runtime.container.states import State as ProcessState
from kata_runtime.containerd_api import events_pb2
from kata_runtime.errors import NotFoundError
from kata_runtime.pod.creation import CreateRequest
from kata_runtime.pod.states import State
from kata_runtime.stdio.files import StdioPaths
from pod_bed import TYPE, PodBed, pod_bed, settle

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
            before = descriptors()
            in_time = await cancelled_after(turns, call(pod))
            await settle()
            await check(pod, in_time)
            exits = [(e.container_id, e.id) for e in pod.events if isinstance(e, events_pb2.TaskExit)]
            assert len(exits) == len(set(exits))
            for process in await processes(pod):
                assert ((process.container_id, process.guest_id) in exits) == (process.exit is not None)
            if pod.tasks.empty and pod.sandbox.state is not State.RUNNING:
                await settle()
                assert descriptors() <= before
        if not in_time:
            assert turns > 2
            return
    raise AssertionError("it was never done")


def descriptors() -> set[tuple[str, str]]:
    """What this process has open but sockets of its event loop: a FIFO's, for one."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return {(name, target) for name, target in found if target.startswith("/") and "/proc/" not in target}


async def processes(pod: PodBed) -> list[Process]:
    """Every process that the tasks know."""
    found = []
    for container_id in ("web", "app"):
        with contextlib.suppress(NotFoundError):
            found += pod.tasks.container(container_id).processes
    return found


async def nothing(pod: PodBed) -> None:
    return None


async def create(pod: PodBed) -> None:
    """Create a container whose output goes to a FIFO."""
    await pod.tasks.create(with_fifo(pod, "web"))


def with_fifo(pod: PodBed, name: str, **changes: Any) -> CreateRequest:
    """A container to create whose output goes to a FIFO."""
    fifo = pod.directory / f"{name}-stdout"
    if not fifo.exists():
        os.mkfifo(fifo)
    return dataclasses.replace(pod.request(name, **changes), stdio=StdioPaths("", str(fifo), ""))


async def waiting(pod: PodBed) -> None:
    pod.broker.configured = False
    await create(pod)
    assert pod.sandbox.state is State.WAITING


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
        if not in_time or not pod.tasks.empty:  # cancelled when all was done
            assert pod.sandbox.state is State.RUNNING
            assert pod.topics() == ["TaskCreate"]
            return
        assert (pod.broker.mounted, pod.broker.made, pod.events) == ([], [], [])
        assert pod.sandbox.state in (State.NEW, State.ENDED)
        assert pod.machines_made == 0 or pod.machine.stops
        if pod.sandbox.state is State.ENDED:
            assert "cancelled" in pod.sandbox.report()["reason"]

    await at_every_await(tmp_path, monkeypatch, nothing, create, check)


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


async def test_a_create_that_waits_for_its_network_is_done_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def without_network(pod: PodBed) -> None:
        pod.broker.configured = False

    async def check(pod: PodBed, in_time: bool) -> None:
        if not in_time or not pod.tasks.empty:
            assert pod.sandbox.state is State.WAITING
            assert pod.topics() == ["TaskCreate"]
            await pod.tasks.delete("web", "")
        else:
            assert pod.sandbox.state in (State.NEW, State.ENDED)
            assert pod.events == []
        assert (pod.broker.mounted, pod.broker.made) == ([], [])

    await at_every_await(tmp_path, monkeypatch, without_network, create, check)


async def test_a_later_create_is_done_or_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the guest as on the host, and the pod goes on."""
    annotations = {TYPE: "container"}

    async def check(pod: PodBed, in_time: bool) -> None:
        await settle()
        assert pod.sandbox.state is State.RUNNING
        began = len(pod.agent.called("create_container")) > 1
        if "TaskCreate" in pod.topics()[2:]:
            assert pod.tasks.process("app", "").state is ProcessState.CREATED
            return
        with pytest.raises(NotFoundError):
            pod.tasks.process("app", "")
        assert [target for target in pod.broker.mounted if "/app/" in target] == []
        assert bool(pod.agent.called("remove_container")) == began

    await at_every_await(
        tmp_path,
        monkeypatch,
        running,
        lambda pod: pod.tasks.create(with_fifo(pod, "app", annotations=annotations)),
        check,
    )


async def test_a_start_that_boots_the_machine_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(pod: PodBed, in_time: bool) -> None:
        began = pod.machines_made > 0 and bool(pod.machine.steps)
        state = ProcessState.RUNNING if began else ProcessState.CREATED
        assert pod.tasks.process("web", "").state is state
        assert pod.topics() == ["TaskCreate", "TaskStart"][: 1 + began]

    await at_every_await(tmp_path, monkeypatch, waiting, lambda pod: pod.tasks.start("web", ""), check)


async def test_the_hooks_of_a_start_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def prepare(pod: PodBed) -> None:
        pod.broker.hooks = {"poststart": []}
        hook = {"path": "/bin/true"}
        await pod.tasks.create(with_fifo(pod, "web", hooks={"poststart": [hook]}))

    async def check(pod: PodBed, in_time: bool) -> None:
        assert pod.broker.ran == ["poststart"] * pod.topics().count("TaskStart")

    await at_every_await(tmp_path, monkeypatch, prepare, lambda pod: pod.tasks.start("web", ""), check)


async def test_a_resume_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def paused(pod: PodBed) -> None:
        await pod.started()
        await pod.tasks.pause("web")

    async def check(pod: PodBed, in_time: bool) -> None:
        resumed = pod.tasks.process("web", "").state is ProcessState.RUNNING
        assert resumed == bool(pod.agent.called("resume_container"))
        assert pod.topics().count("TaskResumed") == resumed

    await at_every_await(tmp_path, monkeypatch, paused, lambda pod: pod.tasks.resume("web"), check)


async def test_a_delete_of_an_exec_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def prepare(pod: PodBed) -> None:
        await with_exec(pod)
        await pod.tasks.start("web", "job")
        pod.agent.end("job", 3)
        await pod.tasks.process("web", "job").wait()

    async def check(pod: PodBed, in_time: bool) -> None:
        left = pod.tasks.container("web").execs
        assert all(process.state is ProcessState.STOPPED for process in left.values())

    await at_every_await(tmp_path, monkeypatch, prepare, lambda pod: pod.tasks.delete("web", "job"), check)


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_kill_leaves_a_pod_that_runs_or_one_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    async def prepare(pod: PodBed) -> None:
        await pod.started()
        if stuck:
            pod.agent.failures["signal_process"] = RpcError(Code.DEADLINE_EXCEEDED, "late")

    async def check(pod: PodBed, in_time: bool) -> None:
        ended = pod.sandbox.state is State.ENDED
        assert ended <= stuck
        assert (pod.tasks.process("web", "").exit is not None) == ended
        assert bool(pod.machine.stops) == ended

    await at_every_await(
        tmp_path, monkeypatch, prepare, lambda pod: pod.tasks.kill("web", "", 9, everyone=False), check
    )


@pytest.mark.parametrize("call", ["resize", "update", "stats", "wait"])
async def test_what_only_asks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async def ask(pod: PodBed) -> None:
        process = pod.tasks.process("web", "")
        match call:
            case "resize":
                process.paths = StdioPaths(terminal=True)
                await pod.tasks.resize("web", "", 80, 25)
            case "update":
                await pod.tasks.update("web", {})
            case "stats":
                await pod.tasks.stats("web")
            case "wait":
                pod.agent.end("web", 0)
                await process.wait()

    async def check(pod: PodBed, in_time: bool) -> None:
        assert pod.sandbox.state is State.RUNNING
        assert pod.tasks.process("web", "").state is (
            ProcessState.STOPPED if pod.topics()[-1] == "TaskExit" else ProcessState.RUNNING
        )

    await at_every_await(tmp_path, monkeypatch, running, ask, check)
