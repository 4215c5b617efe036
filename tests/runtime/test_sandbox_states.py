"""A sandbox is booted once and ends once, for the first reason: whoever asks at the same time, or later."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from kata_hypervisor.errors import LaunchError
from kata_runtime.containerd_api import sandbox_pb2
from kata_runtime.errors import AlreadyExistsError, SandboxError, StateError
from kata_runtime.pod.boot import STAGES
from kata_runtime.pod.states import TRANSITIONS, Event, Lifecycle, State
from kata_runtime.shim.sandbox_service import SandboxService
from pod_bed import TYPE, Gate, PodBed, pod_bed, settle

OOM = "qemu was killed by SIGKILL: the kernel's out-of-memory killer"


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodBed]:
    async with pod_bed(tmp_path, monkeypatch) as bed:
        yield bed


def service(pod: PodBed) -> SandboxService:
    async def shutdown() -> None:
        return None

    broker: Any = pod.broker
    return SandboxService(pod.sandbox, pod.tasks, broker, shutdown, str(pod.configuration))


async def outcome(errors: list[Exception], function: Any, *arguments: Any) -> None:
    try:
        await function(*arguments)
    except Exception as error:  # noqa: BLE001 - a test looks at it
        errors.append(error)


async def test_two_creates_at_once_boot_one_machine(pod: PodBed) -> None:
    pod.machine.preparing.close()
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, errors, pod.tasks.create, pod.request("one"))
        await pod.machine.preparing.reached.wait()
        group.start_soon(outcome, errors, pod.tasks.create, pod.request("two"))
        await settle()
        pod.machine.preparing.open()
    assert pod.machines_made == 1
    assert pod.machine.steps == ["prepare", "run"]
    (error,) = errors
    assert isinstance(error, StateError)
    assert pod.sandbox.running
    await pod.tasks.start("one", "")


async def test_two_starts_of_a_sandbox_at_once_boot_one_machine(pod: PodBed) -> None:
    sandboxes = service(pod)
    await sandboxes.create(sandbox_pb2.CreateSandboxRequest(sandbox_id="pod", bundle_path="/none"))
    pod.machine.preparing.close()
    errors: list[Exception] = []
    start = sandbox_pb2.StartSandboxRequest(sandbox_id="pod")
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, errors, sandboxes.start, start)
        await pod.machine.preparing.reached.wait()
        group.start_soon(outcome, errors, sandboxes.start, start)
        await settle()
        pod.machine.preparing.open()
    assert pod.machines_made == 1
    (error,) = errors
    assert isinstance(error, StateError)
    assert pod.sandbox.running


async def test_a_create_after_the_end_boots_nothing_and_keeps_the_reason(pod: PodBed) -> None:
    await pod.started()
    pod.machine.end(OOM)
    await settle()
    assert pod.reasons == [OOM]
    with pytest.raises(StateError, match="out-of-memory killer"):
        await pod.tasks.create(pod.request("later"))
    assert pod.machines_made == 1
    assert pod.sandbox.report()["reason"] == OOM


async def test_a_sandbox_that_was_stopped_is_not_started(pod: PodBed) -> None:
    sandboxes = service(pod)
    await sandboxes.create(sandbox_pb2.CreateSandboxRequest(sandbox_id="pod", bundle_path="/none"))
    await sandboxes.stop(sandbox_pb2.StopSandboxRequest(sandbox_id="pod"))
    with pytest.raises(StateError):
        await sandboxes.start(sandbox_pb2.StartSandboxRequest(sandbox_id="pod"))
    assert pod.machines_made == 0


async def test_a_failure_while_it_boots_keeps_the_first_reason(pod: PodBed) -> None:
    pod.machine.preparing.close()
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, errors, pod.tasks.create, pod.request())
        await pod.machine.preparing.reached.wait()
        group.start_soon(pod.sandbox.fail, OOM)
        await settle()
        pod.machine.preparing.open()
    assert len(errors) == 1
    assert pod.sandbox.report()["reason"] == OOM
    assert not pod.sandbox.running


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_follows_the_table_or_is_refused(state: State, event: Event) -> None:
    life = Lifecycle("pod")
    life.state, life.reason = state, "it was stopped" if state is State.ENDED else None
    if (state, event) in TRANSITIONS:
        life.apply(event)
        assert life.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(StateError, match=f"^cannot {event.value} sandbox pod: it (is|has|waits)"):
            life.apply(event)
        assert life.state is state


def test_it_ends_once() -> None:
    life = Lifecycle("pod")
    assert life.end("first\nmore of it")
    assert not life.end("second")
    assert life.description == "sandbox pod has ended: first"
    assert life.ended_at > 0


async def test_what_the_second_create_is_answered(pod: PodBed) -> None:
    pod.machine.preparing.close()
    async with anyio.create_task_group() as group:
        group.start_soon(pod.tasks.create, pod.request("one"))
        await pod.machine.preparing.reached.wait()
        for name, annotations in (("two", {}), ("three", {TYPE: "container"})):
            with pytest.raises(
                StateError,
                match=f"^cannot create container {name}: sandbox pod is still booting; wait until the Create",
            ):
                await pod.tasks.create(pod.request(name, annotations=annotations))
        with pytest.raises(AlreadyExistsError, match="container one exists already"):
            await pod.tasks.create(pod.request("one"))
        pod.machine.preparing.open()
    await pod.tasks.create(pod.request("three", annotations={TYPE: "container"}))
    assert pod.machine.stops == 0


async def test_a_pods_container_does_not_boot_the_sandbox(pod: PodBed) -> None:
    with pytest.raises(StateError, match="sandbox pod has not been started; create the container of the"):
        await pod.tasks.create(pod.request("later", annotations={TYPE: "container"}))
    assert pod.sandbox.state is State.NEW


async def test_two_that_create_a_sandbox_at_once(pod: PodBed) -> None:
    sandboxes = service(pod)
    pod.request("bundle")
    request = sandbox_pb2.CreateSandboxRequest(sandbox_id="pod", bundle_path=str(pod.directory / "bundle"))
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, errors, sandboxes.create, request)
        group.start_soon(outcome, errors, sandboxes.create, request)
    (error,) = errors
    assert isinstance(error, AlreadyExistsError)


def _host(pod: PodBed) -> Gate:
    return pod.broker.preparing


def _files(pod: PodBed) -> Gate:
    return pod.broker.binding


def _vmm(pod: PodBed) -> Gate:
    return pod.machine.preparing


def _run(pod: PodBed) -> Gate:
    return pod.machine.running


def _guest(pod: PodBed) -> Gate:
    return pod.agent.gate("create_sandbox")


def _container(pod: PodBed) -> Gate:
    return pod.agent.gate("create_container")


@pytest.mark.parametrize("stage", [_host, _files, _vmm, _run, _guest, _container])
async def test_one_that_is_stopped_while_it_boots_leaves_nothing(
    pod: PodBed, stage: Callable[[PodBed], Gate]
) -> None:
    gate = stage(pod)
    gate.close()
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, errors, pod.tasks.create, pod.request())
        await gate.reached.wait()
        group.start_soon(pod.sandbox.stop, "the shim was shut down")
        await settle()
        if stage in (_host, _files):  # a request to the broker is not broken off: it happens or does not
            gate.open()
        with anyio.fail_after(10):
            await pod.sandbox.wait_ended()
    (error,) = errors
    assert isinstance(error, SandboxError)
    assert "sandbox pod has ended: the shim was shut down" in str(error)
    assert pod.machines_made == 0 or pod.machine.stops
    assert (pod.broker.mounted, pod.broker.made) == ([], [])
    assert pod.tasks.empty


async def test_a_wait_returns_when_the_machine_is_gone(pod: PodBed) -> None:
    await pod.started()
    pod.machine.stopping.close()
    over = anyio.Event()

    async def wait() -> None:
        await pod.sandbox.wait_ended()
        over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(pod.sandbox.stop)
        await pod.machine.stopping.reached.wait()
        await settle()
        assert not over.is_set()
        pod.machine.stopping.open()
    assert over.is_set()


async def test_a_wait_for_a_sandbox_that_could_not_start_returns(pod: PodBed) -> None:
    sandboxes = service(pod)
    await sandboxes.create(sandbox_pb2.CreateSandboxRequest(sandbox_id="pod", bundle_path="/none"))
    pod.machine.failure = LaunchError("no memory")
    with pytest.raises(LaunchError):
        await sandboxes.start(sandbox_pb2.StartSandboxRequest(sandbox_id="pod"))
    with anyio.fail_after(10):
        await sandboxes.wait(sandbox_pb2.WaitSandboxRequest(sandbox_id="pod"))
    status = await sandboxes.status(sandbox_pb2.SandboxStatusRequest(sandbox_id="pod"))
    assert (status.state, dict(status.info)) == ("SANDBOX_NOTREADY", {"reason": "no memory"})


async def test_a_broker_that_knows_better_is_quoted(pod: PodBed) -> None:
    pod.machine.failure = LaunchError("permission denied")
    pod.broker.fault = "the filter refused execve"
    with pytest.raises(SandboxError, match="the filter refused execve"):
        await pod.tasks.create(pod.request())


async def test_an_action_on_a_sandbox_that_has_ended_says_why(pod: PodBed) -> None:
    await pod.tasks.create(pod.request())
    gate = pod.agent.gate("start_container")
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, errors, pod.tasks.start, "web", "")
        await gate.reached.wait()
        await pod.sandbox.fail(OOM)
    assert str(errors[0]) == f"cannot start container web: sandbox pod has ended: {OOM}"


async def test_the_stages_are_those_of_the_table(pod: PodBed, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await pod.started()
    (line,) = [line for line in caplog.messages if "is running after" in line]
    taken = re.findall(r"(\w+) \d+ ms(?! \()", line)
    assert tuple(taken) == STAGES
