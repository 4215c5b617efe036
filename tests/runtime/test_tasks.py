"""Containers and processes of one sandbox, against an agent that plays its part."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.states import State
from kata_runtime.containerd_api import events_pb2
from kata_runtime.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    SandboxError,
    StateError,
    UnsupportedError,
)
from kata_runtime.resource.shares import RootfsMount
from kata_runtime.stdio.files import StdioPaths
from pod_bed import TYPE, PodBed, pod_bed, settle


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodBed]:
    async with pod_bed(tmp_path, monkeypatch) as bed:
        yield bed


async def test_a_containers_whole_life_in_order(pod: PodBed) -> None:
    await pod.started()
    process = pod.tasks.process("web", "")
    assert process.state is State.RUNNING
    pod.agent.end("web", 42)
    assert (await process.wait()).status == 42
    await pod.tasks.delete("web", "")
    assert pod.topics() == ["TaskCreate", "TaskStart", "TaskExit", "TaskDelete"]
    assert pod.events[2].exit_status == 42  # type: ignore[attr-defined]
    assert pod.machine.stops == 1
    assert pod.tasks.empty
    assert (pod.broker.mounted, pod.broker.made) == ([], [])


@pytest.mark.parametrize(
    ("annotations", "kinds", "shown"),
    [
        pytest.param({}, ["overlay"], True, id="alone, overlayfs"),
        pytest.param({}, ["bind"], True, id="alone, native"),
        pytest.param({}, [], True, id="alone, of the bundle"),
        pytest.param({}, ["ext4"], False, id="alone, on a block device"),
        pytest.param({TYPE: "sandbox"}, ["overlay"], False, id="one of a pod's"),
    ],
)
async def test_a_lone_containers_files_are_seen_by_its_pid(
    pod: PodBed, annotations: dict[str, str], kinds: list[str], shown: bool
) -> None:
    rootfs = tuple(RootfsMount(kind, "/source", ()) for kind in kinds)
    await pod.tasks.create(dataclasses.replace(pod.request(annotations=annotations), rootfs=rootfs))
    assert pod.broker.shown == (pod.broker.mounted if shown else [])


async def test_a_host_that_shows_no_files_runs_the_container(
    pod: PodBed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Linux before 5.14 cannot forbid links."""

    async def show_root(target: str) -> None:
        raise RequestFailedError(f"cannot show {target}: Invalid argument")

    monkeypatch.setattr(pod.broker, "show_root", show_root)
    with caplog.at_level("INFO"):
        await pod.started()
    assert "nobody sees the files of container web at /proc/PID/root: cannot show " in caplog.text
    assert pod.tasks.process("web", "").state is State.RUNNING


async def test_a_duplicate_id_is_refused_and_harmless(pod: PodBed) -> None:
    await pod.started()
    with pytest.raises(AlreadyExistsError, match="web exists already"):
        await pod.tasks.create(pod.request())
    assert pod.tasks.process("web", "").state is State.RUNNING


async def test_a_network_that_came_after_create_is_refused(pod: PodBed) -> None:
    await pod.tasks.create(pod.request())
    pod.broker.late = ["eth0"]
    with pytest.raises(UnsupportedError, match=r"container web: .* got eth0 after its machine was") as caught:
        await pod.tasks.start("web", "")
    assert "give the pod all of its interfaces" in str(caught.value)
    assert pod.tasks.process("web", "").state is State.CREATED


async def test_a_running_container_is_not_deleted(pod: PodBed) -> None:
    await pod.started()
    with pytest.raises(StateError, match="cannot delete container web: it is running"):
        await pod.tasks.delete("web", "")
    assert pod.machine.stops == 0


async def test_a_failed_boot_leaves_nothing_and_delete_finds_nothing(pod: PodBed) -> None:
    pod.machine.failure = SandboxError("vmm", "qemu exited with status 1 before the guest was ready")
    with pytest.raises(SandboxError, match="qemu exited"):
        await pod.tasks.create(pod.request())
    with pytest.raises(NotFoundError):
        await pod.tasks.delete("web", "")
    assert pod.tasks.empty
    assert pod.events == []


async def test_a_failure_in_the_guest_unmounts_what_was_shared(pod: PodBed, tmp_path: Path) -> None:
    pod.agent.failures["create_container"] = RpcError(Code.INTERNAL, "crun: no")
    mount = {"destination": "/data", "type": "bind", "source": str(tmp_path), "options": ["rbind"]}
    with pytest.raises(RpcError, match="crun: no"):
        await pod.tasks.create(pod.request(mounts=[mount]))
    assert (pod.broker.mounted, pod.broker.made) == ([], [])
    assert pod.machine.stops == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mounts": [{"destination": "/x", "type": "bind", "source": "/no/such"}]},
            "'/no/such' of the mount on /x does not exist",
        ),
        ({"root": {"path": "missing"}}, "missing is not a directory"),
        ({"process": {"args": ["sh"], "cwd": "/", "env": [3]}}, "env"),
    ],
)
async def test_a_bundle_that_cannot_work_says_why(pod: PodBed, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await pod.tasks.create(pod.request(**changes))
    assert pod.broker.mounted == []
    assert pod.machines_made == 0


async def test_the_end_of_the_sandbox_ends_every_process_with_a_status(pod: PodBed) -> None:
    await pod.started()
    await pod.tasks.exec("web", "job", {"args": ["sh"], "cwd": "/"}, StdioPaths())
    await pod.tasks.start("web", "job")
    pod.machine.end("qemu was killed by SIGKILL")
    assert (await pod.tasks.process("web", "").wait()).status == 137
    assert (await pod.tasks.process("web", "job").wait()).status == 137
    exits = [event.id for event in pod.events if isinstance(event, events_pb2.TaskExit)]
    assert exits == ["job", "web"]
    with pytest.raises(NotFoundError, match="cannot signal container web: it has exited already"):
        await pod.tasks.kill("web", "", 9, everyone=False)
    with pytest.raises(NotFoundError, match="sandbox pod has ended: qemu was killed by SIGKILL"):
        await pod.tasks.kill("web", "", 9, everyone=True)
    await pod.tasks.delete("web", "job")
    await pod.tasks.delete("web", "")
    assert pod.tasks.empty


async def test_an_exec_lives_apart_from_its_container(pod: PodBed) -> None:
    await pod.started()
    await pod.tasks.exec("web", "job", {"args": ["true"], "cwd": "/"}, StdioPaths())
    with pytest.raises(AlreadyExistsError):
        await pod.tasks.exec("web", "job", {"args": ["true"], "cwd": "/"}, StdioPaths())
    await pod.tasks.start("web", "job")
    pod.agent.end("job", 3)
    assert (await pod.tasks.process("web", "job").wait()).status == 3
    await pod.tasks.delete("web", "job")
    with pytest.raises(NotFoundError):
        pod.tasks.process("web", "job")
    assert pod.tasks.process("web", "").state is State.RUNNING
    assert pod.topics() == ["TaskCreate", "TaskStart", "TaskExecAdded", "TaskExecStarted", "TaskExit"]


async def test_an_exec_that_cannot_start_can_be_deleted(pod: PodBed) -> None:
    await pod.started()
    pod.agent.failures["exec_process"] = RpcError(Code.NOT_FOUND, "executable not found")
    await pod.tasks.exec("web", "job", {"args": ["nope"], "cwd": "/"}, StdioPaths())
    with pytest.raises(RpcError, match="executable not found"):
        await pod.tasks.start("web", "job")
    await pod.tasks.delete("web", "job")


async def test_signals_go_to_the_process_or_to_all(pod: PodBed) -> None:
    await pod.started()
    await pod.tasks.kill("web", "", 15, everyone=False)
    await pod.tasks.kill("web", "", 9, everyone=True)
    assert [(r.exec_id, r.signal) for r in pod.agent.called("signal_process")] == [("web", 15), ("", 9)]


async def test_a_guest_that_does_not_take_sigkill_is_ended(pod: PodBed) -> None:
    await pod.started()
    pod.agent.failures["signal_process"] = RpcError(Code.DEADLINE_EXCEEDED, "late")
    with pytest.raises(RpcError, match="late"):
        await pod.tasks.kill("web", "", 15, everyone=False)
    await pod.tasks.kill("web", "", 9, everyone=False)
    assert pod.sandbox.report()["reason"] == (
        "the guest's agent did not deliver SIGKILL to container web in time"
    )


async def test_pause_and_resume_follow_the_table(pod: PodBed) -> None:
    await pod.started()
    await pod.tasks.pause("web")
    with pytest.raises(StateError, match="it is paused"):
        await pod.tasks.pause("web")
    await pod.tasks.resume("web")
    assert pod.topics()[-2:] == ["TaskPaused", "TaskResumed"]


async def test_a_size_before_the_start_is_kept_for_it(pod: PodBed) -> None:
    request = pod.request()
    await pod.tasks.create(request)
    pod.tasks.container("web").init.paths = StdioPaths(terminal=True)
    await pod.tasks.resize("web", "", 120, 40)
    assert pod.agent.called("tty_win_resize") == []
    gate = pod.agent.gate("start_container")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pod.tasks.start, "web", "")
        await settle()
        before_its_program = [(r.column, r.row) for r in pod.agent.called("tty_win_resize")]
        gate.open()
    assert before_its_program == [(120, 40)]
    assert len(pod.agent.called("tty_win_resize")) == 1


async def test_an_exec_has_its_size_from_its_first_call_on(pod: PodBed) -> None:
    await pod.started()
    spec = {"args": ["sh"], "cwd": "/", "terminal": True}
    await pod.tasks.exec("web", "shell", spec, StdioPaths(terminal=True))
    await pod.tasks.resize("web", "shell", 120, 40)
    await pod.tasks.start("web", "shell")
    (request,) = pod.agent.called("exec_process")
    assert (request.process.ConsoleSize.Width, request.process.ConsoleSize.Height) == (120, 40)
    assert [(r.column, r.row) for r in pod.agent.called("tty_win_resize")] == [(120, 40)]


async def test_a_created_container_can_be_deleted(pod: PodBed) -> None:
    await pod.tasks.create(pod.request())
    process = await pod.tasks.delete("web", "")
    assert process.exit is not None
    assert process.exit.status == 137
    await settle()
    assert pod.topics() == ["TaskCreate", "TaskExit", "TaskDelete"]


async def test_a_start_that_fails_leaves_it_created(pod: PodBed) -> None:
    pod.agent.failures["start_container"] = RpcError(Code.INTERNAL, "no such executable")
    await pod.tasks.create(pod.request())
    with pytest.raises(RpcError, match="no such executable"):
        await pod.tasks.start("web", "")
    assert pod.tasks.process("web", "").state is State.CREATED


async def test_oom_is_published_for_known_containers_only(pod: PodBed) -> None:
    await pod.started()
    pod.tasks.oom("web")
    pod.tasks.oom("other")
    assert pod.topics().count("TaskOOM") == 1


async def test_a_later_create_that_times_out_in_the_guest_is_removed_there(pod: PodBed) -> None:
    await pod.started()
    pod.agent.failures["create_container"] = RpcError(Code.DEADLINE_EXCEEDED, "not done within 60 s")
    annotations = {TYPE: "container"}
    with pytest.raises(RpcError, match="cannot create container app: not done within 60 s"):
        await pod.tasks.create(pod.request("app", annotations=annotations))
    assert [request.container_id for request in pod.agent.called("remove_container")] == ["app"]
    del pod.agent.failures["create_container"]
    await pod.tasks.create(pod.request("app", annotations=annotations))


async def test_a_size_that_cannot_be_set_any_more_does_not_fail_the_start(pod: PodBed) -> None:
    await pod.tasks.create(pod.request())
    pod.tasks.container("web").init.paths = StdioPaths(terminal=True)
    await pod.tasks.resize("web", "", 120, 40)
    pod.agent.failures["tty_win_resize"] = RpcError(Code.NOT_FOUND, "process web has ended")
    await pod.tasks.start("web", "")
    assert pod.tasks.process("web", "").state is State.RUNNING


async def test_a_kill_while_the_machine_dies_finds_nothing(pod: PodBed) -> None:
    await pod.started()
    gate = pod.agent.gate("signal_process")
    errors: list[Exception] = []

    async def kill() -> None:
        try:
            await pod.tasks.kill("web", "", 9, everyone=True)
        except NotFoundError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(kill)
        await gate.reached.wait()
        await pod.machine.hang_up()
    assert "cannot signal container web: its guest has ended" in str(errors[0])
