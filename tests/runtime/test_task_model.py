"""The real tasks and sandbox beside a model of containerd's task API: any order of calls, ends in between.

The model knows for each process its state, and what was published of it. Whatever is asked, the answer is the
model's: done, or an error of the right kind; and afterwards both are in the same state.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kata_runtime.container.process import KILLED
from kata_runtime.containerd_api import events_pb2
from kata_runtime.errors import AlreadyExistsError, NotFoundError, RuntimeRoomError, StateError
from kata_runtime.pod.states import State as SandboxState
from kata_runtime.stdio.files import StdioPaths
from pod_bed import TYPE, PodBed, pod_bed

PROCESS = {"args": ["true"], "cwd": "/"}
POD_CONTAINER = {TYPE: "container", "io.kubernetes.cri.sandbox-id": "pod"}
WHO = {
    "TaskCreate": "container_id",
    "TaskStart": "container_id",
    "TaskExecAdded": "exec_id",
    "TaskExecStarted": "exec_id",
    "TaskPaused": "container_id",
    "TaskResumed": "container_id",
    "TaskExit": "id",
}
"""Which field of an event names the process."""


@dataclass
class Model:
    """One process. container: of an exec. events: what is published of it, in order."""

    name: str
    container: str = ""
    state: str = "created"
    status: int | None = None
    events: list[str] = field(default_factory=list)
    waiter: asyncio.Task[Any] | None = None

    @property
    def key(self) -> tuple[str, str]:
        return (self.container, self.name) if self.container else (self.name, "")

    @property
    def live(self) -> bool:
        return self.state in ("running", "paused")

    def exit(self, status: int) -> None:
        if self.state != "stopped":
            self.state, self.status = "stopped", status
            self.events.append("TaskExit")


class Pod(RuleBasedStateMachine):
    """containerd, and whatever happens in the guest meanwhile."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.patch = pytest.MonkeyPatch()
        self.directory = tempfile.TemporaryDirectory()
        self.known: dict[str, Model] = {}
        self.gone: list[Model] = []
        self.ended = False
        self.booted = False
        self.count = 0
        self.bed = self.run(self._open())
        self.ask(self._create(self.bed.request("early", annotations=POD_CONTAINER)), StateError)
        self.create()
        self._start(self.known["c0"])

    async def _open(self) -> PodBed:
        ready: asyncio.Future[PodBed] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

        async def host() -> None:
            async with pod_bed(Path(self.directory.name), self.patch) as bed:
                ready.set_result(bed)
                await self.over.wait()

        self.host = asyncio.create_task(host())
        return await ready

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        async def close() -> None:
            self.over.set()
            await self.host
            waiters = [one.waiter for one in [*self.known.values(), *self.gone] if one.waiter is not None]
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)

        if hasattr(self, "runner"):
            try:
                self.run(close())
            finally:
                self.runner.close()
                self.patch.undo()
                self.directory.cleanup()

    # -- what is asked -------------------------------------------------------------------------------------

    def ask(self, work: Coroutine[Any, Any, Any], expected: type[RuntimeRoomError] | None) -> None:
        """Make a call of containerd's: done, or an error of this kind."""
        if expected is None:
            self.run(work)
            return
        with pytest.raises(expected):
            self.run(work)

    def containers(self) -> list[Model]:
        return [one for one in self.known.values() if not one.container]

    def execs_of(self, name: str) -> list[Model]:
        return [one for one in self.known.values() if one.container == name]

    def one(self, data: st.DataObject, *states: str, execs: bool = True) -> Model:
        """Mostly a process in one of these states; else any other, or one that is not there."""
        known = [one for one in self.known.values() if execs or not one.container]
        fitting = [one for one in known if one.state in states]
        draw = data.draw(st.integers(0, 9))
        if draw < 7 and fitting:
            return data.draw(st.sampled_from(fitting))
        return data.draw(st.sampled_from(known)) if draw < 9 and known else Model("nobody")

    def expect(self, model: Model, refused: bool) -> type[RuntimeRoomError] | None:
        if model.name not in self.known:
            return NotFoundError
        return StateError if refused else None

    def _watch(self, model: Model) -> None:
        self.known[model.name] = model

        async def watch() -> None:
            model.waiter = asyncio.create_task(self.bed.tasks.wait(*model.key))

        self.run(watch())

    @rule()
    def create(self) -> None:
        name = f"c{self.count}"
        self.count += 1
        first = not self.booted
        annotations = {TYPE: "sandbox"} if first else POD_CONTAINER
        request = self.bed.request(name, annotations=annotations)
        self.ask(self._create(request), StateError if self.ended else None)
        if not self.ended:
            self.booted = True
            self._watch(Model(name, events=["TaskCreate"]))

    async def _create(self, request: Any) -> None:
        await self.bed.tasks.create(request)

    @precondition(lambda self: self.containers())
    @rule(data=st.data())
    def create_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([one.name for one in self.containers()]))
        self.ask(self._create(self.bed.request(name)), AlreadyExistsError)

    @rule(data=st.data())
    def exec(self, data: st.DataObject) -> None:
        container = self.one(data, "running", execs=False)
        name = f"e{self.count}"
        self.count += 1
        expected = self.expect(container, container.state == "stopped")
        self.ask(self.bed.tasks.exec(container.name, name, PROCESS, StdioPaths()), expected)
        if expected is None:
            self._watch(Model(name, container.name, events=["TaskExecAdded"]))

    @rule(data=st.data())
    def start_one(self, data: st.DataObject) -> None:
        self._start(self.one(data, "created"))

    def _start(self, model: Model) -> None:
        expected = self.expect(model, not self._startable(model))
        self.ask(self.bed.tasks.start(*model.key), expected)
        if expected is None:
            self._started(model)

    def _startable(self, model: Model) -> bool:
        container = self.known.get(model.container or model.name)
        runs = container is not None and (container is model or container.state == "running")
        return model.state == "created" and runs and not self.ended

    def _started(self, model: Model) -> None:
        model.state = "running"
        model.events.append("TaskExecStarted" if model.container else "TaskStart")

    @rule(data=st.data())
    def start_one_twice_at_once(self, data: st.DataObject) -> None:
        model = self.one(data, "created")
        if not self._startable(model):
            return
        before = len(self.bed.agent.calls)

        async def both() -> list[Any]:
            calls = (self.bed.tasks.start(*model.key) for _ in range(2))
            return await asyncio.gather(*calls, return_exceptions=True)

        results = self.run(both())
        assert sorted(type(one).__name__ for one in results) == ["NoneType", "StateError"]
        asked = [name for name, _ in self.bed.agent.calls[before:]]
        assert asked.count("exec_process" if model.container else "start_container") == 1
        self._started(model)

    @rule(data=st.data(), status=st.integers(0, 255))
    def one_exits(self, data: st.DataObject, status: int) -> None:
        model = self.one(data, "running", "paused", execs=data.draw(st.booleans()))
        if model.name not in self.known or not model.live or self.ended:
            return
        for other in self.execs_of(model.name):
            if other.live:
                other.exit(KILLED)
        model.exit(status)
        self.bed.agent.end(model.name, status)
        self.run(self._wait(model))

    async def _wait(self, model: Model) -> None:
        await self.bed.tasks.wait(*model.key)

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        model = self.one(data, "running", execs=False)
        expected = self.expect(model, model.state != "running")
        self.ask(self.bed.tasks.pause(model.name), expected)
        if expected is None:
            model.state = "paused"
            model.events.append("TaskPaused")

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        model = self.one(data, "paused", execs=False)
        expected = self.expect(model, model.state != "paused")
        self.ask(self.bed.tasks.resume(model.name), expected)
        if expected is None:
            model.state = "running"
            model.events.append("TaskResumed")

    @rule(data=st.data(), number=st.sampled_from([9, 15, 10]))
    def kill(self, data: st.DataObject, number: int) -> None:
        model = self.one(data, "running", "paused")
        expected: type[RuntimeRoomError] | None = None
        if model.name not in self.known or model.state == "stopped":
            expected = NotFoundError
        elif model.container and model.state == "created":
            expected = StateError
        self.ask(self.bed.tasks.kill(*model.key, number, everyone=False), expected)

    @rule(data=st.data())
    def resize_what_has_no_terminal(self, data: st.DataObject) -> None:
        model = self.one(data)
        self.ask(self.bed.tasks.resize(*model.key, 80, 25), self.expect(model, True))

    @rule(data=st.data())
    def close_stdin(self, data: st.DataObject) -> None:
        model = self.one(data)

        async def close() -> None:
            self.bed.tasks.close_stdin(*model.key)

        self.ask(close(), self.expect(model, False))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        model = self.one(data, "stopped", "created")
        expected = self.expect(model, model.live)
        self.ask(self.bed.tasks.delete(*model.key), expected)
        if expected is None:
            self._deleted(model)

    @rule(data=st.data())
    def delete_twice_at_once(self, data: st.DataObject) -> None:
        model = self.one(data, "stopped")
        if model.name not in self.known or model.live:
            return

        async def both() -> list[Any]:
            calls = (self.bed.tasks.delete(*model.key) for _ in range(2))
            return await asyncio.gather(*calls, return_exceptions=True)

        results = [type(one).__name__ for one in self.run(both())]
        assert sorted(results) == ["NotFoundError", "Process"]
        self._deleted(model)

    def _deleted(self, model: Model) -> None:
        del self.known[model.name]
        self.gone.append(model)
        if not model.container:
            if model.state == "created":
                model.exit(KILLED)
            for one in self.execs_of(model.name):
                self.gone.append(self.known.pop(one.name))
            model.events.append("TaskDelete")
            if not self.containers():
                self.ended = True

    @precondition(lambda self: self.booted and not self.ended)
    @rule(sure=st.integers(0, 5))
    def the_machine_dies(self, sure: int) -> None:
        if sure < 5:
            return  # or there would be little else
        self.bed.machine.end("qemu was killed")
        self.run(self.bed.sandbox.wait_ended())
        self.ended = True
        for one in self.known.values():
            if one.container and one.live:
                one.exit(KILLED)
        for one in self.containers():
            one.exit(KILLED)

    # -- what is true after each ---------------------------------------------------------------------------

    @invariant()
    def both_are_in_the_same_state(self) -> None:
        if not hasattr(self, "bed"):
            return
        for one in self.known.values():
            _, process = self.bed.tasks.known(*one.key)
            assert process.state.value == one.state, one
            assert (process.exit.status if process.exit else None) == one.status, one
        assert self.bed.tasks.empty is not bool(self.containers())
        assert (self.bed.sandbox.state is SandboxState.ENDED) is self.ended

    @invariant()
    def what_was_published_is_what_happened(self) -> None:
        if not hasattr(self, "bed"):
            return
        published: dict[str, list[str]] = {}
        for event in self.bed.events:
            name = event.DESCRIPTOR.name
            who = getattr(event, WHO.get(name, "container_id"))
            if isinstance(event, events_pb2.TaskDelete) and event.id not in ("", event.container_id):
                continue  # of an exec: containerd publishes those itself
            published.setdefault(who, []).append(name)
        for one in [*self.known.values(), *self.gone]:
            assert published.get(one.name, []) == one.events, one

    @invariant()
    def who_waits_is_answered_at_the_exit_and_not_before(self) -> None:
        if not hasattr(self, "bed"):
            return
        for one in self.known.values():
            assert one.waiter is not None
            if one.state == "stopped":
                assert self.run(self._result(one)).exit.status == one.status
            else:
                assert not one.waiter.done()

    async def _result(self, model: Model) -> Any:
        assert model.waiter is not None
        return await model.waiter


Pod.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestPod = Pod.TestCase
