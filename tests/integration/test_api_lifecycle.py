"""Containers from Create to Delete: states, refusals, events, pause, many at once, memory's end."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.containerd_api import task_types_pb2
from kata_runtime.containerd_api.metrics_pb2 import Metrics
from oci_bundle import bind
from shim_pod import Pod
from shim_process import Process

pytestmark = pytest.mark.integration

MIB = 1 << 20


async def end(process: Process) -> None:
    await process.kill(9)
    await process.wait()
    await process.delete()


async def stats(process: Process) -> Metrics:
    packed = (await process.call("Stats")).stats
    assert packed.type_url == "io.containerd.cgroups.v1.Metrics"
    return Metrics.FromString(packed.value)


# -- states and refusals -----------------------------------------------------------------------------------


async def test_states(shim_pod: Pod) -> None:
    process = await shim_pod.create("sleep", "1000")
    state = await process.state()
    assert (state.id, state.status, state.exit_status) == (process.id, task_types_pb2.CREATED, 0)
    assert state.bundle == str(shim_pod.shim.lab.directory / "bundles" / process.id)
    pid = await process.start()
    assert (await process.state()).status == task_types_pb2.RUNNING
    assert pid == state.pid
    await process.kill(15)
    await process.kill(9)
    assert await process.wait() == 137
    state = await process.state()
    assert (state.status, state.exit_status) == (task_types_pb2.STOPPED, 137)
    response = await process.call("Delete")
    assert (response.exit_status, response.exited_at) == (137, state.exited_at)
    with pytest.raises(RpcError) as caught:
        await process.state()
    assert caught.value.code is Code.NOT_FOUND
    process.streams.close()


async def test_wait_answers_at_once_after_the_end_and_to_all(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sleep", "0.3")
    answers: list[int] = []

    async def wait() -> None:
        answers.append(await process.wait())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
    await wait()
    assert answers == [0, 0, 0, 0]
    await process.delete()


async def test_an_id_is_taken_until_the_container_is_deleted(shim_pod: Pod) -> None:
    first = await shim_pod.start_container("sleep", "1000")
    bundle = str(shim_pod.shim.lab.directory / "bundles" / first.id)
    with pytest.raises(RpcError) as caught:
        await shim_pod.shim.task("Create", id=first.id, bundle=bundle)
    assert caught.value.code is Code.ALREADY_EXISTS
    assert (await first.state()).status == task_types_pb2.RUNNING
    await end(first)


async def test_delete_of_a_running_container_is_refused(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sleep", "1000")
    with pytest.raises(RpcError) as caught:
        await process.call("Delete")
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert (await process.state()).status == task_types_pb2.RUNNING
    await end(process)


async def test_start_twice_is_refused(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sleep", "1000")
    with pytest.raises(RpcError) as caught:
        await process.start()
    assert caught.value.code is Code.FAILED_PRECONDITION
    await end(process)


async def test_delete_of_a_created_container(shim_pod: Pod) -> None:
    process = await shim_pod.create("sleep", "1000")
    assert await process.delete() == 137
    sink = shim_pod.shim.lab.sink
    await sink.wait_for(process.id, "delete")
    assert sink.topics(process.id) == ["create", "exit", "delete"]


async def test_what_does_not_exist_is_not_found(shim_pod: Pod) -> None:
    for method in (
        "State",
        "Start",
        "Delete",
        "Pids",
        "Pause",
        "Resume",
        "Kill",
        "Stats",
        "Wait",
        "Connect",
        "CloseIO",
    ):
        with pytest.raises(RpcError) as caught:
            await shim_pod.shim.task(method, id="absent", stdin=True)
        assert (method, caught.value.code) == (method, Code.NOT_FOUND)


async def test_checkpoint_is_unimplemented(shim_pod: Pod) -> None:
    with pytest.raises(RpcError) as caught:
        await shim_pod.shim.task("Checkpoint", id=shim_pod.first.id, path="/tmp/x")
    assert caught.value.code is Code.UNIMPLEMENTED


async def test_connect_and_pids(shim_pod: Pod) -> None:
    answer = await shim_pod.first.call("Connect")
    assert Path(f"/proc/{answer.shim_pid}/comm").read_text() == "kata-shim\n"
    assert Path(f"/proc/{answer.task_pid}/comm").read_text() == "kata-init\n"
    (vmm,) = [process.pid for process in (await shim_pod.first.call("Pids")).processes]
    assert "qemu" in os.readlink(f"/proc/{vmm}/exe")


async def test_both_versions_of_the_service_answer_alike(shim_pod: Pod) -> None:
    answers = [await shim_pod.shim.task("State", version=version, id=shim_pod.first.id) for version in (2, 3)]
    assert answers[0] == answers[1]


async def test_memory_answers_while_a_container_is_being_created(shim_pod: Pod) -> None:
    done = await shim_pod.start_container("true")
    await done.wait()
    order: list[str] = []

    async def create() -> None:
        process = await shim_pod.create("true")
        order.append("created")
        await process.delete()

    async def ask() -> None:
        await anyio.sleep(0.01)
        await shim_pod.first.state()
        await done.wait()
        order.append("answered")

    async with anyio.create_task_group() as group:
        group.start_soon(create)
        group.start_soon(ask)
    assert order == ["answered", "created"]
    await done.delete()


# -- events ------------------------------------------------------------------------------------------------


async def test_events_of_a_container_and_its_exec_in_order(shim_pod: Pod) -> None:
    sink = shim_pod.shim.lab.sink
    process = await shim_pod.start_container("sh", "-c", "read x; exit 6", stdin=True)
    exec_ = await shim_pod.start_exec("sh", "-c", "exit 5", container=process)
    await exec_.finish()
    await process.call("Pause")
    await process.call("Resume")
    assert (await process.finish(b"\n")).status == 6
    deleted = await sink.wait_for(process.id, "delete")
    topics = "create start exec-added exec-started exit paused resumed exit delete"
    assert " ".join(sink.topics(process.id)) == topics
    created = sink.of(process.id, "create")[0]
    assert (created.bundle, created.io.stdout) == (
        str(shim_pod.shim.lab.directory / "bundles" / process.id),
        process.streams.fields["stdout"],
    )
    exits = [(event.id, event.exit_status) for event in sink.of(process.id, "exit")]
    assert exits == [(exec_.exec_id, 5), (process.id, 6)]
    assert (deleted.exit_status, deleted.exited_at) == (6, sink.of(process.id, "exit")[1].exited_at)
    assert sink.of(process.id, "exec-started")[0].exec_id == exec_.exec_id
    assert {event.pid for event in sink.of(process.id, "exit")} == {created.pid}


async def test_events_wait_while_containerd_is_away(shim_pod: Pod) -> None:
    sink = shim_pod.shim.lab.sink
    process = await shim_pod.create("true")
    await sink.wait_for(process.id, "create")
    await sink.close()
    await process.start()
    await process.wait()
    await process.delete()
    await anyio.sleep(0.5)
    assert sink.topics(process.id) == ["create"]
    sink.open()
    await sink.wait_for(process.id, "delete")
    assert sink.topics(process.id) == ["create", "start", "exit", "delete"]
    assert {envelope.namespace for envelope in sink.envelopes} == {shim_pod.shim.lab.namespace}


# -- many --------------------------------------------------------------------------------------------------


async def test_eight_containers_at_once(shim_pod: Pod) -> None:
    sink = shim_pod.shim.lab.sink

    async def run(number: int) -> None:
        process = await shim_pod.start_container("sh", "-c", f"cat; echo {number}; exit {number}", stdin=True)
        finished = await process.finish(b"x" * 10_000)
        assert (finished.status, finished.stdout) == (number, b"x" * 10_000 + b"%d\n" % number)
        await sink.wait_for(process.id, "delete")
        assert sink.topics(process.id) == ["create", "start", "exit", "delete"]

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(run, number)


async def test_containers_of_a_pod_share_its_ipc_and_hostname_and_not_their_pids(shim_pod: Pod) -> None:
    finished = await shim_pod.run("sh", "-c", "hostname; readlink /proc/self/ns/ipc; echo $$")
    hostname, ipc, pid = finished.text.split()
    assert (hostname, pid) == ("pod-host", "1")
    assert ipc == (await shim_pod.exec("readlink", "/proc/self/ns/ipc")).text.strip()


# -- while it runs -----------------------------------------------------------------------------------------


async def test_pause_stops_the_clock_of_a_container_and_resume_lets_it_go_on(shim_pod: Pod) -> None:
    count = "i=0; while :; do i=$((i+1)); echo $i > /shared/count; usleep 10000; done"
    shared = shim_pod.shim.lab.directory / shim_pod.shim.lab.new_id("shared")
    shared.mkdir()
    process = await shim_pod.start_container("sh", "-c", count, mounts=[bind(shared, "/shared")])

    def counted() -> int:
        try:
            return int((shared / "count").read_text() or 0)
        except FileNotFoundError:
            return 0

    async def grows() -> None:
        before = counted()
        with anyio.fail_after(30):
            while counted() <= before:  # noqa: ASYNC110
                await anyio.sleep(0.05)

    await grows()
    await process.call("Pause")
    assert (await process.state()).status == task_types_pb2.PAUSED
    await anyio.sleep(0.2)
    before = counted()
    await anyio.sleep(0.5)
    assert counted() == before
    with pytest.raises(RpcError) as caught:
        await process.call("Pause")
    assert caught.value.code is Code.FAILED_PRECONDITION
    await process.call("Resume")
    assert (await process.state()).status == task_types_pb2.RUNNING
    await grows()
    with pytest.raises(RpcError) as caught:
        await process.call("Resume")
    assert caught.value.code is Code.FAILED_PRECONDITION
    await end(process)


async def test_a_paused_container_can_be_killed(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sleep", "1000")
    await process.call("Pause")
    await process.kill(9)
    assert await process.wait() == 137
    await process.delete()


async def test_stats_move(shim_pod: Pod) -> None:
    script = "sleep 1000 & while :; do :; done"
    linux = {"resources": {"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}}}
    process = await shim_pod.start_container("sh", "-c", script, linux=linux)
    first = await stats(process)
    await anyio.sleep(0.3)
    second = await stats(process)
    assert second.cpu.usage.total > first.cpu.usage.total > 0
    assert 0 < second.memory.usage.usage < 64 * MIB
    assert second.memory.usage.limit == 64 * MIB
    assert (second.pids.current, second.pids.limit) == (2, 50)
    await end(process)


async def test_update_of_memory_and_pids(shim_pod: Pod) -> None:
    linux = {"resources": {"memory": {"limit": 64 * MIB}}}
    process = await shim_pod.start_container("sleep", "1000", linux=linux)
    resources = (
        b'{"memory": {"limit": 50331648}, "pids": {"limit": 33}, "cpu": {"quota": 30000, "period": 100000}}'
    )
    await process.call("Update", resources={"type_url": "resources", "value": resources})
    after = await stats(process)
    assert (after.memory.usage.limit, after.pids.limit) == (48 * MIB, 33)
    script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max"
    finished = await shim_pod.exec("sh", "-c", script, container=process)
    assert finished.text.split("\n") == [str(48 * MIB), "33", "30000 100000", ""]
    with pytest.raises(RpcError) as caught:
        await process.call("Update", resources={"value": b"not json"})
    assert caught.value.code is Code.INVALID_ARGUMENT
    await end(process)


async def test_a_container_that_eats_its_memory_is_killed_and_told_of(shim_pod: Pod) -> None:
    linux = {"resources": {"memory": {"limit": 32 * MIB, "swap": 32 * MIB}}}
    process = await shim_pod.start_container("tail", "/dev/zero", linux=linux)
    assert (await process.finish()).status == 137
    oom = await shim_pod.shim.lab.sink.wait_for(process.id, "oom")
    assert oom.container_id == process.id
    assert (await shim_pod.exec("echo", "alive")).text == "alive\n"


async def test_a_container_may_ask_for_more_than_the_machine_has_and_use_some_of_it(shim_pod: Pod) -> None:
    """As on a kubelet's node: what is written to is what counts, and too much of that is killed."""
    linux = {"resources": {"memory": {"limit": 32 * MIB, "swap": 32 * MIB}}}
    program = ("dd", "if=/dev/zero", "of=/dev/null", "bs=8G", "count=1")
    process = await shim_pod.start_container(*program, linux=linux)
    assert (await process.finish()).status == 137
    process = await shim_pod.start_container("dd", "if=/dev/null", *program[2:], linux=linux)
    assert (await process.finish()).status == 0


async def test_processes_killed_for_memory_are_counted(shim_pod: Pod) -> None:
    linux = {"resources": {"memory": {"limit": 32 * MIB, "swap": 32 * MIB}}}
    script = "tail /dev/zero; exec sleep 1000"
    process = await shim_pod.start_container("sh", "-c", script, linux=linux)
    await shim_pod.shim.lab.sink.wait_for(process.id, "oom")
    assert (await stats(process)).memory_oom_control.oom_kill == 1
    await end(process)


async def test_shutdown_with_containers_left_does_nothing(shim_pod: Pod) -> None:
    await shim_pod.shim.task("Shutdown", id=shim_pod.shim.id)
    await anyio.sleep(0.3)
    assert (await shim_pod.exec("echo", "alive")).text == "alive\n"
