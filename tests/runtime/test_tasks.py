"""Containers and processes of one sandbox, against an agent that plays its part."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from google.protobuf.message import Message

from kata_agent.protos import agent_pb2
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
)
from kata_runtime.pod.creation import CreateRequest
from kata_runtime.pod.tasks import Tasks
from kata_runtime.stdio.pumps import StdioPaths


class FakeAgent:
    """Processes that end when they are told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Message]] = []
        self.ends: dict[str, anyio.Event] = {}
        self.statuses: dict[str, int] = {}
        self.failures: dict[str, RpcError] = {}

    def __getattr__(self, name: str) -> Any:
        async def call(request: Message, *, timeout: float | None = None) -> Message:
            self.calls.append((name, request))
            if name in self.failures:
                raise self.failures[name]
            return agent_pb2.StatsContainerResponse()

        return call

    async def wait_process(self, request: agent_pb2.WaitProcessRequest) -> agent_pb2.WaitProcessResponse:
        await self.ends.setdefault(request.exec_id, anyio.Event()).wait()
        return agent_pb2.WaitProcessResponse(status=self.statuses[request.exec_id])

    def end(self, guest_id: str, status: int) -> None:
        self.statuses[guest_id] = status
        self.ends.setdefault(guest_id, anyio.Event()).set()

    def called(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]


class FakeBroker:
    """Remembers what is mounted and what exists."""

    def __init__(self) -> None:
        self.mounted: list[str] = []
        self.made: list[str] = []

    async def read_spec(self, bundle: str) -> bytes:
        return Path(bundle, "config.json").read_bytes()

    async def make_directory(self, path: str) -> None:
        self.made.append(path)

    async def mount(self, target: str, mounts: list[Any]) -> None:
        self.mounted.append(target)

    async def bind(self, source: str, target: str, *, readonly: bool, recursive: bool = True) -> None:
        try:
            os.stat(source)
        except OSError as error:
            raise RequestFailedError(f"cannot share {source}", error.errno or 0) from None
        self.mounted.append(target)
        self.made.append(target)

    async def unmount(self, target: str) -> None:
        self.mounted.remove(target)

    async def remove(self, path: str) -> None:
        self.made.remove(path)

    async def open_fifo(self, path: str, mode: str) -> int:
        raise AssertionError("no test here has stdio")

    open_log = open_fifo

    async def open_in_image(self, root: str, name: str, *, write: bool) -> int:
        raise RequestFailedError(f"cannot open {name} in the image: there is none")


class FakeSandbox:
    """A sandbox whose machine boots at once."""

    def __init__(self, directory: Path) -> None:
        self.identity = SimpleNamespace(id="sandbox", shared_directory=str(directory))
        self.agent_double = FakeAgent()
        self.broker = FakeBroker()
        self.configuration: Any = None
        self.ended: str | None = None
        self.stream_io = True
        self.lasting = False
        self.vmm_pid = 4242
        self.boot_failure: Exception | None = None
        self.transport = None
        self.boots = self.stops = 0

    @property
    def running(self) -> bool:
        return self.configuration is not None and self.ended is None

    @property
    def agent(self) -> FakeAgent:
        if not self.running:
            raise SandboxError("running", f"the sandbox has ended: {self.ended}")
        return self.agent_double

    @property
    def shares_files(self) -> bool:
        return True

    async def boot(
        self,
        spec: dict[str, Any],
        config_path: str | None,
        make_ready: Callable[[str | None], Awaitable[object]],
    ) -> None:
        await make_ready(None)
        self.boots += 1
        if self.boot_failure is not None:
            self.ended = str(self.boot_failure)
            raise self.boot_failure
        self.configuration = SimpleNamespace(runtime=SimpleNamespace(disable_guest_seccomp=False))

    async def fail(self, reason: str) -> None:
        self.ended = reason

    async def stop(self) -> None:
        self.stops += 1
        self.ended = self.ended or "it was stopped"


class Fixture:
    def __init__(self, directory: Path, group: anyio.abc.TaskGroup) -> None:
        self.directory = directory
        self.sandbox = FakeSandbox(directory / "shared")
        self.events: list[Message] = []
        self.tasks = Tasks(self.sandbox, group, self.events.append)  # type: ignore[arg-type]

    @property
    def agent(self) -> FakeAgent:
        return self.sandbox.agent_double

    def request(self, name: str = "web", **changes: Any) -> CreateRequest:
        bundle = self.directory / name
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        spec = {"process": {"args": ["sh"], "cwd": "/"}, "root": {"path": "rootfs"}, "linux": {}} | changes
        (bundle / "config.json").write_text(json.dumps(spec))
        return CreateRequest(name, str(bundle), (), StdioPaths(), None)

    async def running(self, name: str = "web") -> None:
        await self.tasks.create(self.request(name))
        await self.tasks.start(name, "")

    def topics(self) -> list[str]:
        return [event.DESCRIPTOR.name for event in self.events]

    async def settled(self) -> None:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[Fixture]:
    async with anyio.create_task_group() as group:
        yield Fixture(tmp_path, group)
        group.cancel_scope.cancel()


async def test_a_containers_whole_life_in_order(fixture: Fixture) -> None:
    await fixture.running()
    process = fixture.tasks.process("web", "")
    assert process.state is State.RUNNING
    fixture.agent.end("web", 42)
    assert (await process.wait()).status == 42
    await fixture.tasks.delete("web", "")
    assert fixture.topics() == ["TaskCreate", "TaskStart", "TaskExit", "TaskDelete"]
    assert fixture.events[2].exit_status == 42  # type: ignore[attr-defined]
    assert fixture.sandbox.stops == 1
    assert fixture.tasks.empty
    assert (fixture.sandbox.broker.mounted, fixture.sandbox.broker.made) == ([], [])


async def test_a_duplicate_id_is_refused_and_harmless(fixture: Fixture) -> None:
    await fixture.running()
    with pytest.raises(AlreadyExistsError, match="web exists already"):
        await fixture.tasks.create(fixture.request())
    assert fixture.tasks.process("web", "").state is State.RUNNING


async def test_a_running_container_is_not_deleted(fixture: Fixture) -> None:
    await fixture.running()
    with pytest.raises(StateError, match="cannot delete container web: it is running"):
        await fixture.tasks.delete("web", "")
    assert fixture.sandbox.stops == 0


async def test_a_failed_boot_leaves_nothing_and_delete_finds_nothing(fixture: Fixture) -> None:
    fixture.sandbox.boot_failure = SandboxError("vmm", "qemu ended before the guest was ready")
    with pytest.raises(SandboxError, match="qemu ended"):
        await fixture.tasks.create(fixture.request())
    with pytest.raises(NotFoundError):
        await fixture.tasks.delete("web", "")
    assert fixture.tasks.empty
    assert fixture.events == []


async def test_a_failure_in_the_guest_unmounts_what_was_shared(fixture: Fixture, tmp_path: Path) -> None:
    fixture.agent.failures["create_container"] = RpcError(Code.INTERNAL, "crun: no")
    mount = {"destination": "/data", "type": "bind", "source": str(tmp_path), "options": ["rbind"]}
    with pytest.raises(RpcError, match="crun: no"):
        await fixture.tasks.create(fixture.request(mounts=[mount]))
    assert (fixture.sandbox.broker.mounted, fixture.sandbox.broker.made) == ([], [])
    assert fixture.sandbox.stops == 1


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
async def test_a_bundle_that_cannot_work_says_why(
    fixture: Fixture, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await fixture.tasks.create(fixture.request(**changes))
    assert fixture.sandbox.broker.mounted == []
    assert fixture.sandbox.boots == 0


async def test_the_end_of_the_sandbox_ends_every_process_with_a_status(fixture: Fixture) -> None:
    await fixture.running()
    await fixture.tasks.exec("web", "job", {"args": ["sh"], "cwd": "/"}, StdioPaths())
    await fixture.tasks.start("web", "job")
    fixture.sandbox.ended = "qemu was killed by SIGKILL"
    fixture.tasks.end_all(fixture.sandbox.ended)
    assert (await fixture.tasks.process("web", "").wait()).status == 137
    assert (await fixture.tasks.process("web", "job").wait()).status == 137
    exits = [event.id for event in fixture.events if isinstance(event, events_pb2.TaskExit)]
    assert exits == ["job", "web"]
    with pytest.raises(NotFoundError):
        await fixture.tasks.kill("web", "", 9, everyone=False)
    await fixture.tasks.delete("web", "job")
    await fixture.tasks.delete("web", "")
    assert fixture.tasks.empty


async def test_an_exec_lives_apart_from_its_container(fixture: Fixture) -> None:
    await fixture.running()
    await fixture.tasks.exec("web", "job", {"args": ["true"], "cwd": "/"}, StdioPaths())
    with pytest.raises(AlreadyExistsError):
        await fixture.tasks.exec("web", "job", {"args": ["true"], "cwd": "/"}, StdioPaths())
    await fixture.tasks.start("web", "job")
    fixture.agent.end("job", 3)
    assert (await fixture.tasks.process("web", "job").wait()).status == 3
    await fixture.tasks.delete("web", "job")
    with pytest.raises(NotFoundError):
        fixture.tasks.process("web", "job")
    assert fixture.tasks.process("web", "").state is State.RUNNING
    assert fixture.topics() == ["TaskCreate", "TaskStart", "TaskExecAdded", "TaskExecStarted", "TaskExit"]


async def test_an_exec_that_cannot_start_can_be_deleted(fixture: Fixture) -> None:
    await fixture.running()
    fixture.agent.failures["exec_process"] = RpcError(Code.NOT_FOUND, "executable not found")
    await fixture.tasks.exec("web", "job", {"args": ["nope"], "cwd": "/"}, StdioPaths())
    with pytest.raises(RpcError, match="executable not found"):
        await fixture.tasks.start("web", "job")
    await fixture.tasks.delete("web", "job")


async def test_signals_go_to_the_process_or_to_all(fixture: Fixture) -> None:
    await fixture.running()
    await fixture.tasks.kill("web", "", 15, everyone=False)
    await fixture.tasks.kill("web", "", 9, everyone=True)
    assert [(r.exec_id, r.signal) for r in fixture.agent.called("signal_process")] == [("web", 15), ("", 9)]


async def test_a_guest_that_does_not_take_sigkill_is_ended(fixture: Fixture) -> None:
    await fixture.running()
    fixture.agent.failures["signal_process"] = RpcError(Code.DEADLINE_EXCEEDED, "late")
    with pytest.raises(RpcError, match="late"):
        await fixture.tasks.kill("web", "", 15, everyone=False)
    await fixture.tasks.kill("web", "", 9, everyone=False)
    assert fixture.sandbox.ended == "the guest's agent did not take SIGKILL for container web"


async def test_pause_and_resume_follow_the_table(fixture: Fixture) -> None:
    await fixture.running()
    await fixture.tasks.pause("web")
    with pytest.raises(StateError, match="it is paused"):
        await fixture.tasks.pause("web")
    await fixture.tasks.resume("web")
    assert fixture.topics()[-2:] == ["TaskPaused", "TaskResumed"]


async def test_a_size_before_the_start_is_kept_for_it(fixture: Fixture) -> None:
    request = fixture.request()
    await fixture.tasks.create(request)
    fixture.tasks.container("web").init.paths = StdioPaths(terminal=True)
    await fixture.tasks.resize("web", "", 120, 40)
    assert fixture.agent.called("tty_win_resize") == []
    await fixture.tasks.start("web", "")
    assert [(r.column, r.row) for r in fixture.agent.called("tty_win_resize")] == [(120, 40)]


async def test_a_created_container_can_be_deleted(fixture: Fixture) -> None:
    await fixture.tasks.create(fixture.request())
    process = await fixture.tasks.delete("web", "")
    assert process.exit is not None
    assert process.exit.status == 137
    await fixture.settled()
    assert fixture.topics() == ["TaskCreate", "TaskExit", "TaskDelete"]


async def test_a_start_that_fails_leaves_it_created(fixture: Fixture) -> None:
    fixture.agent.failures["start_container"] = RpcError(Code.INTERNAL, "no such executable")
    await fixture.tasks.create(fixture.request())
    with pytest.raises(RpcError, match="no such executable"):
        await fixture.tasks.start("web", "")
    assert fixture.tasks.process("web", "").state is State.CREATED


async def test_oom_is_published_for_known_containers_only(fixture: Fixture) -> None:
    await fixture.running()
    fixture.tasks.oom("web")
    fixture.tasks.oom("other")
    assert fixture.topics().count("TaskOOM") == 1
