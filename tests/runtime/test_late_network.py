"""A pod whose network comes between Create and Start: its machine boots at Start. Its hooks come before."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from kata_hypervisor.errors import LaunchError
from kata_runtime.container.states import State
from kata_runtime.errors import NotFoundError, SandboxError, StateError, UnsupportedError
from kata_runtime.network import addresses
from kata_runtime.pod.states import State as SandboxState
from kata_runtime.shim.task_service import TaskService
from kata_runtime.stdio.files import StdioPaths
from pod_bed import INIT_PID, TYPE, PodBed, pod_bed, settle


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodBed]:
    async with pod_bed(tmp_path, monkeypatch) as bed:
        bed.broker.configured = False
        yield bed


async def waiting(pod: PodBed, **changes: Any) -> None:
    """Create a container whose pod has no network yet."""
    await pod.tasks.create(pod.request(**changes))
    assert pod.sandbox.state is SandboxState.WAITING


async def test_the_machine_boots_at_start(pod: PodBed) -> None:
    await waiting(pod)
    assert pod.machine.steps == []
    assert pod.agent.calls == []
    assert pod.sandbox.pid == INIT_PID
    assert pod.tasks.process("web", "").state is State.CREATED
    await pod.tasks.start("web", "")
    assert pod.machine.steps == ["prepare", "run"]
    assert pod.sandbox.pid == INIT_PID
    assert [name for name, _ in pod.agent.calls if name.endswith("_container")] == [
        "create_container",
        "start_container",
    ]
    pod.agent.end("web", 42)
    assert (await pod.tasks.process("web", "").wait()).status == 42
    await pod.tasks.delete("web", "")
    assert pod.topics() == ["TaskCreate", "TaskStart", "TaskExit", "TaskDelete"]
    assert {event.pid for event in pod.events} == {INIT_PID}  # type: ignore[attr-defined]


async def test_create_answers_with_the_process_in_the_pods_namespace(pod: PodBed) -> None:
    async def shutdown() -> None:
        return None

    service = TaskService(pod.tasks, pod.sandbox, shutdown, str(pod.configuration))
    request: Any = service.handlers()["containerd.task.v3.Task", "Create"].request()
    made = pod.request()
    request.id, request.bundle = made.id, made.bundle
    assert (await service.create(request)).pid == INIT_PID
    assert pod.machine.steps == []


async def test_a_pod_of_kubernetes_boots_at_create(pod: PodBed) -> None:
    await pod.tasks.create(pod.request("sandbox", annotations={TYPE: "sandbox"}))
    assert pod.sandbox.running


async def test_a_pod_with_a_network_boots_at_create(pod: PodBed) -> None:
    pod.broker.configured = True
    await pod.tasks.create(pod.request())
    assert pod.sandbox.running


async def test_a_boot_that_fails_is_starts_error_and_the_containers_exit(pod: PodBed) -> None:
    await waiting(pod)
    pod.machine.failure = LaunchError("qemu exited with status 1 before the guest was ready")
    with pytest.raises(LaunchError, match="qemu exited"):
        await pod.tasks.start("web", "")
    assert (await pod.tasks.process("web", "").wait()).status == 137
    with pytest.raises(StateError):
        await pod.tasks.start("web", "")
    await pod.tasks.delete("web", "")
    assert pod.topics() == ["TaskCreate", "TaskExit", "TaskDelete"]
    assert (pod.broker.mounted, pod.broker.made) == ([], [])


async def test_a_container_that_is_deleted_while_it_waits_leaves_nothing(pod: PodBed, tmp_path: Path) -> None:
    fifo = tmp_path / "stdout"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    request = pod.request()
    await pod.tasks.create(type(request)(**{**_fields(request), "stdio": StdioPaths("", str(fifo), "")}))
    await pod.tasks.delete("web", "")
    assert pod.machine.steps == ["stop"]
    assert pod.tasks.empty
    assert (pod.broker.mounted, pod.broker.made) == ([], [])
    assert os.read(reader, 1) == b""
    os.close(reader)
    with anyio.fail_after(10):
        await pod.sandbox.wait_ended()


def _fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


@pytest.mark.parametrize(("number", "status"), [(9, 137), (15, 143)])
async def test_a_container_that_is_killed_while_it_waits_has_exited(
    pod: PodBed, number: int, status: int
) -> None:
    await waiting(pod)
    with pytest.raises(StateError, match="it has not been started"):
        await pod.tasks.kill("web", "", 10, everyone=False)
    await pod.tasks.kill("web", "", number, everyone=False)
    assert (await pod.tasks.process("web", "").wait()).status == status
    with pytest.raises(StateError):
        await pod.tasks.start("web", "")
    await pod.tasks.delete("web", "")
    assert pod.machine.steps == ["stop"]


async def test_a_container_that_is_killed_while_its_machine_boots(pod: PodBed) -> None:
    await waiting(pod)
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
            await pod.tasks.kill("web", "", 9, everyone=False)
    assert "container web got signal 9 while its machine booted" in str(errors[0])
    assert (await pod.tasks.process("web", "").wait()).status == 137
    assert pod.machine.stops


async def test_what_needs_the_guest_says_that_it_waits(pod: PodBed) -> None:
    await waiting(pod)
    for call in (pod.tasks.stats("web"), pod.tasks.pause("web")):
        with pytest.raises((SandboxError, StateError)):
            await call
    with pytest.raises(StateError, match="waits for the start of its container; start that container first"):
        await pod.tasks.create(pod.request("two"))


async def test_a_sandbox_that_ends_while_it_waits_ends_its_container(pod: PodBed) -> None:
    await waiting(pod)
    await pod.sandbox.fail("the broker has exited")
    assert (await pod.tasks.process("web", "").wait()).status == 137
    assert pod.machine.steps == ["stop"]
    with pytest.raises(NotFoundError, match="it has exited already"):
        await pod.tasks.kill("web", "", 9, everyone=False)


# -- hooks -------------------------------------------------------------------------------------------------

ALL = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")


def hooks(pod: PodBed, *kinds: str, **failures: str) -> dict[str, Any]:
    """A specification's hooks, which the broker learns. failures: what is said of a kind that fails."""
    pod.broker.hooks = {kind: [failures[kind]] if kind in failures else [] for kind in kinds}
    return {"hooks": {kind: [{"path": "/bin/true"}] for kind in kinds}}


async def test_hooks_run_in_the_order_of_the_containers_life(pod: PodBed) -> None:
    await waiting(pod, **hooks(pod, *ALL))
    assert pod.broker.ran == [*ALL[:3]]
    await pod.tasks.start("web", "")
    assert pod.broker.ran == [*ALL[:4]]
    pod.agent.end("web", 0)
    await pod.tasks.process("web", "").wait()
    await pod.tasks.delete("web", "")
    assert pod.broker.ran == [*ALL]


@pytest.mark.parametrize("kind", ALL[:3])
async def test_a_hook_that_fails_before_the_guest_runs_fails_create(pod: PodBed, kind: str) -> None:
    with pytest.raises(SandboxError, match=f"cannot create the container: {kind} said no"):
        await pod.tasks.create(pod.request(**hooks(pod, *ALL, **{kind: f"{kind} said no"})))
    assert pod.broker.ran == [*ALL[: ALL.index(kind) + 1]]
    assert "run" not in pod.machine.steps
    assert pod.tasks.empty
    assert (pod.broker.mounted, pod.broker.made) == ([], [])


async def test_a_hook_that_fails_later_is_a_warning(pod: PodBed, caplog: pytest.LogCaptureFixture) -> None:
    await waiting(pod, **hooks(pod, "poststart", "poststop", poststart="no start", poststop="no stop"))
    await pod.tasks.start("web", "")
    pod.agent.end("web", 0)
    await pod.tasks.process("web", "").wait()
    await pod.tasks.delete("web", "")
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in warned if line.startswith("no ")] == ["no start", "no stop"]


async def test_a_poststart_hook_that_does_not_end_holds_up_no_delete(
    pod: PodBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, begun, over, stopped = anyio.Lock(), anyio.Event(), anyio.Event(), anyio.Event()

    async def run_hooks(kind: str) -> list[str]:
        async with turn:  # one after the other, as their runner does
            pod.broker.ran.append(kind)
            if kind == "poststart":
                begun.set()
                await over.wait()
            stopped.set()
            return []

    # No request that is finished in any case, as `SuspendingBroker` has them: a pipe is waited for.
    monkeypatch.setattr(pod.broker, "run_hooks", lambda kind: run_hooks(kind))
    await waiting(pod, **hooks(pod, "poststart", "poststop"))
    pod.group.start_soon(pod.tasks.start, "web", "")
    await begun.wait()
    pod.agent.end("web", 0)
    await pod.tasks.process("web", "").wait()
    deleted = asyncio.create_task(pod.tasks.delete("web", ""))
    with anyio.move_on_after(10):
        await stopped.wait()
    ran = pod.broker.ran.copy()
    over.set()  # or nobody could cancel what waits for it
    await deleted
    assert ran == ["poststart", "poststop"]


async def test_hooks_of_a_container_that_comes_later_are_refused(pod: PodBed) -> None:
    pod.broker.configured = True
    await pod.tasks.create(pod.request("sandbox", annotations={TYPE: "sandbox"}))
    for kind in ALL:
        spec = {"hooks": {kind: [{"path": "/bin/true"}], "startContainer": [{"path": "/in/guest"}]}}
        with pytest.raises(UnsupportedError, match=f"has {kind} hooks, and a pod has those of its first"):
            await pod.tasks.create(pod.request("later", annotations={TYPE: "container"}, **spec))
    assert pod.broker.ran == []
    await settle()


# -- addresses ---------------------------------------------------------------------------------------------

LOOPBACK = "  +-- 127.0.0.0/8 2 0 2\n     |-- 127.0.0.1\n        /32 host LOCAL\n"
V6_LOOPBACK = "00000000000000000000000000000001 01 80 10 80       lo\n"
V6_LINK = "fe80000000000000b0d2acfffe1c8f11 02 40 20 80     eth0\n"


@pytest.mark.parametrize(
    ("trie", "v6", "configured"),
    [
        (LOOPBACK, V6_LOOPBACK, False),
        (LOOPBACK, V6_LOOPBACK + V6_LINK, False),
        (LOOPBACK, V6_LOOPBACK + "fd000ed5000000000000000000000002 02 40 00 80     eth0\n", True),
        (LOOPBACK + "     |-- 10.4.0.7\n        /32 host LOCAL\n", "", True),
        (LOOPBACK + "     |-- 10.4.0.0\n        /24 link UNICAST\n", "", False),
        (LOOPBACK + "     |-- 169.254.7.7\n        /32 host LOCAL\n", "", False),
        ("", "", False),
    ],
)
def test_what_counts_as_an_address(
    monkeypatch: pytest.MonkeyPatch, trie: str, v6: str, configured: bool
) -> None:
    files = {"fib_trie": trie.splitlines(), "if_inet6": v6.splitlines()}
    monkeypatch.setattr(addresses, "_lines", lambda pid, name: files[name])
    assert addresses.are_configured(1) is configured


def test_the_interfaces_of_this_namespace_are_found() -> None:
    assert set(addresses.interfaces(os.getpid())) == set(os.listdir("/sys/class/net")) | {"lo"}
    assert json.dumps(addresses.are_configured(os.getpid())) in ("true", "false")
