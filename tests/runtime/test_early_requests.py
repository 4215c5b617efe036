"""What is asked for a container while it is created, and its machine boots: nobody waits for the boot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kata_runtime.containerd_api import task_pb2, task_types_pb2
from kata_runtime.errors import NotFoundError, SandboxError, StateError
from kata_runtime.pod.states import State as SandboxState
from kata_runtime.shim.task_service import TaskService
from pod_bed import INIT_PID, TYPE, Gate, PodBed, pod_bed, settle


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodBed]:
    async with pod_bed(tmp_path, monkeypatch) as bed:
        yield bed


def service(pod: PodBed) -> TaskService:
    async def shutdown() -> None:
        return None

    return TaskService(pod.tasks, pod.sandbox, shutdown, str(pod.configuration))


class Creating:
    """A Create under way."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    async def run(self, pod: PodBed, name: str = "web", **changes: Any) -> None:
        try:
            await pod.tasks.create(pod.request(name, **changes))
        except (SandboxError, StateError) as error:
            self.errors.append(error)


async def test_it_is_seen_as_created(pod: PodBed) -> None:
    pod.machine.running.close()
    async with anyio.create_task_group() as group:
        group.start_soon(Creating().run, pod)
        await pod.machine.running.reached.wait()
        state = await service(pod).state(task_pb2.StateRequest(id="web"))
        assert (state.status, state.pid) == (task_types_pb2.CREATED, INIT_PID)
        assert state.bundle == str(pod.directory / "web")
        pids = await service(pod).pids(task_pb2.PidsRequest(id="web"))
        assert [process.pid for process in pids.processes] == [INIT_PID]
        assert (await service(pod).connect(task_pb2.ConnectRequest(id="web"))).task_pid == INIT_PID
        with pytest.raises(StateError, match="container web is still being created"):
            await pod.tasks.start("web", "")
        pod.machine.running.open()
    assert (await service(pod).state(task_pb2.StateRequest(id="web"))).status == task_types_pb2.CREATED


async def test_there_is_no_process_before_the_pod_has_one(pod: PodBed) -> None:
    pod.broker.preparing.close()
    async with anyio.create_task_group() as group:
        group.start_soon(Creating().run, pod)
        await pod.broker.preparing.reached.wait()
        assert not (await service(pod).pids(task_pb2.PidsRequest(id="web"))).processes
        pod.broker.preparing.open()


def _vmm(pod: PodBed) -> Gate:
    return pod.machine.preparing


def _run(pod: PodBed) -> Gate:
    return pod.machine.running


def _container(pod: PodBed) -> Gate:
    return pod.agent.gate("create_container")


@pytest.mark.parametrize("stage", [_vmm, _run, _container])
@pytest.mark.parametrize("delete", [False, True])
async def test_a_kill_or_delete_ends_the_creation(pod: PodBed, stage: Any, delete: bool) -> None:
    gate = stage(pod)
    gate.close()
    creating, exits = Creating(), []

    async def wait() -> None:
        exits.append((await service(pod).wait(task_pb2.WaitRequest(id="web"))).exit_status)

    async with anyio.create_task_group() as group:
        group.start_soon(creating.run, pod)
        await gate.reached.wait()
        group.start_soon(wait)
        await settle()
        with anyio.fail_after(10):
            if delete:
                assert (await service(pod).delete(task_pb2.DeleteRequest(id="web"))).exit_status == 137
            else:
                await pod.tasks.kill("web", "", 9, everyone=True)
    (error,) = creating.errors
    assert ("was deleted while" if delete else "container web got signal 9 while it was created") in str(
        error
    )
    assert exits == [137]
    assert pod.sandbox.state is SandboxState.ENDED
    assert pod.machine.stops
    assert (pod.broker.mounted, pod.broker.made, pod.events) == ([], [], [])
    with pytest.raises(NotFoundError):
        await pod.tasks.delete("web", "")


async def test_a_signal_that_ends_nothing_is_refused(pod: PodBed) -> None:
    pod.machine.running.close()
    async with anyio.create_task_group() as group:
        group.start_soon(Creating().run, pod)
        await pod.machine.running.reached.wait()
        with pytest.raises(StateError, match="still being created"):
            await pod.tasks.kill("web", "", 10, everyone=False)
        pod.machine.running.open()
    assert pod.sandbox.running


async def test_the_kill_of_a_later_container_leaves_the_pod(pod: PodBed) -> None:
    await pod.started()
    pod.broker.binding.close()
    pod.broker.binding.reached = anyio.Event()
    creating = Creating()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: creating.run(pod, "app", annotations={TYPE: "container"}))
        await pod.broker.binding.reached.wait()
        group.start_soon(lambda: pod.tasks.kill("app", "", 9, everyone=False))
        await settle()
        pod.broker.binding.open()
    (error,) = creating.errors
    assert str(error) == "cannot create container app: container app got signal 9 while it was created"
    assert pod.sandbox.running
    assert [target for target in pod.broker.mounted if "/app/" in target] == []


async def test_a_wait_goes_on_with_the_container_that_was_created(pod: PodBed) -> None:
    pod.machine.running.close()
    exits: list[int] = []

    async def wait() -> None:
        exits.append((await service(pod).wait(task_pb2.WaitRequest(id="web"))).exit_status)

    async with anyio.create_task_group() as group:
        group.start_soon(Creating().run, pod)
        await pod.machine.running.reached.wait()
        group.start_soon(wait)
        await settle()
        pod.machine.running.open()
        await settle()
        with anyio.fail_after(10):
            while not pod.sandbox.running or pod.tasks.empty or not pod.events:
                await anyio.lowlevel.checkpoint()
        assert exits == []
        await pod.tasks.start("web", "")
        pod.agent.end("web", 42)
    assert exits == [42]


async def test_a_delete_ends_the_boot_of_a_container_that_waited_for_its_network(pod: PodBed) -> None:
    pod.broker.configured = False
    await pod.tasks.create(pod.request())
    pod.machine.running.close()
    errors: list[Exception] = []

    async def start() -> None:
        try:
            await pod.tasks.start("web", "")
        except SandboxError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        await pod.machine.running.reached.wait()
        with anyio.fail_after(10):
            assert (await service(pod).delete(task_pb2.DeleteRequest(id="web"))).exit_status == 137
    assert "container web was deleted while its machine booted" in str(errors[0])
    assert pod.tasks.empty
