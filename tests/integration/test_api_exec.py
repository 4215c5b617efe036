"""Execs: further processes in a running container."""

from __future__ import annotations

import anyio
import pytest

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.containerd_api import task_types_pb2
from shim_pod import Pod

pytestmark = pytest.mark.integration


async def test_status_output_and_input(shim_pod: Pod) -> None:
    finished = await shim_pod.exec("sh", "-c", "cat; echo err >&2; exit 42", stdin=b"through\0\xff")
    assert (finished.status, finished.stdout, finished.stderr) == (42, b"through\0\xff", b"err\n")


async def test_an_exec_has_its_own_environment_directory_and_user(shim_pod: Pod) -> None:
    finished = await shim_pod.exec(
        "sh",
        "-c",
        "pwd; id -u; id -G; echo $WHO",
        cwd="/tmp",
        env=["PATH=/bin", "WHO=exec"],
        user={"uid": 1000, "gid": 1000, "additionalGids": [2000]},
    )
    assert finished.text.splitlines() == ["/tmp", "1000", "1000 2000", "exec"]


async def test_an_exec_shares_the_containers_namespaces(shim_pod: Pod) -> None:
    assert (await shim_pod.exec("cat", "/proc/1/comm")).text == "sleep\n"
    script = "for name in pid ipc uts mnt; do readlink /proc/$0/ns/$name; done"
    own, first = [(await shim_pod.exec("sh", "-c", script, pid)).text for pid in ("self", "1")]
    assert own == first


async def test_ten_at_once(shim_pod: Pod) -> None:
    async def check(number: int) -> None:
        finished = await shim_pod.exec("sh", "-c", f"cat; exit {number}", stdin=b"%d\n" % number * 1000)
        assert (finished.status, finished.stdout) == (number, b"%d\n" % number * 1000)

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(check, number)


async def test_kill_one_of_two(shim_pod: Pod) -> None:
    killed, spared = [await shim_pod.start_exec("sleep", "1000") for _ in range(2)]
    await killed.kill(9)
    assert (await killed.finish()).status == 137
    assert (await spared.state()).status == task_types_pb2.RUNNING
    await spared.kill(15)
    assert (await spared.finish()).status == 143


async def test_an_executable_that_does_not_exist(shim_pod: Pod) -> None:
    exec_ = await shim_pod.add_exec("/bin/no-such-program")
    with pytest.raises(RpcError) as caught:
        await exec_.start()
    assert "no-such-program" in caught.value.message.partition("\n")[0]
    assert (await exec_.state()).status == task_types_pb2.STOPPED
    await exec_.delete()
    assert (await shim_pod.exec("echo", "alive")).text == "alive\n"


async def test_state_from_added_to_deleted(shim_pod: Pod) -> None:
    exec_ = await shim_pod.add_exec("sleep", "1000")
    state = await exec_.state()
    assert (state.id, state.exec_id, state.status) == (
        shim_pod.first.id,
        exec_.exec_id,
        task_types_pb2.CREATED,
    )
    await exec_.start()
    state = await exec_.state()
    assert (state.status, state.pid > 0) == (task_types_pb2.RUNNING, True)
    assert state.stdout == exec_.streams.fields["stdout"]
    await exec_.kill(9)
    await exec_.wait()
    state = await exec_.state()
    assert (state.status, state.exit_status) == (task_types_pb2.STOPPED, 137)
    assert state.exited_at.seconds > 0
    await exec_.delete()
    with pytest.raises(RpcError) as caught:
        await exec_.state()
    assert caught.value.code is Code.NOT_FOUND


async def test_an_id_is_taken_until_the_exec_is_deleted(shim_pod: Pod) -> None:
    first = await shim_pod.start_exec("true", exec_id="twice")
    await first.wait()
    with pytest.raises(RpcError) as caught:
        await shim_pod.add_exec("true", exec_id="twice")
    assert caught.value.code is Code.ALREADY_EXISTS
    await first.delete()
    assert (await shim_pod.exec("echo", "again", exec_id="twice")).text == "again\n"


async def test_two_containers_may_have_execs_of_one_id(shim_pod: Pod) -> None:
    other = await shim_pod.start_container("sleep", "1000")
    here = await shim_pod.start_exec("sh", "-c", "hostname", exec_id="same")
    there = await shim_pod.start_exec("sh", "-c", "exit 3", exec_id="same", container=other)
    assert (await there.finish()).status == 3
    assert (await here.finish()).text == "pod-host\n"
    await other.kill(9)
    await other.wait()
    await other.delete()


async def test_delete_of_a_running_exec_is_refused(shim_pod: Pod) -> None:
    exec_ = await shim_pod.start_exec("sleep", "1000")
    with pytest.raises(RpcError) as caught:
        await exec_.call("Delete")
    assert caught.value.code is Code.FAILED_PRECONDITION
    await exec_.kill(9)
    await exec_.wait()
    await exec_.delete()


async def test_start_twice_is_refused(shim_pod: Pod) -> None:
    exec_ = await shim_pod.start_exec("sleep", "1000")
    with pytest.raises(RpcError) as caught:
        await exec_.start()
    assert caught.value.code is Code.FAILED_PRECONDITION
    await exec_.kill(9)
    await exec_.wait()
    await exec_.delete()


async def test_exec_in_a_container_that_is_not_running_is_refused(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("true")
    await process.wait()
    with pytest.raises(RpcError) as caught:
        await shim_pod.add_exec("true", container=process)
    assert caught.value.code is Code.FAILED_PRECONDITION
    await process.delete()
    with pytest.raises(RpcError) as caught:
        await shim_pod.add_exec("true", container=process)
    assert caught.value.code is Code.NOT_FOUND


async def test_exec_in_a_paused_container_is_refused(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sleep", "1000")
    await process.call("Pause")
    exec_ = await shim_pod.add_exec("true", container=process)
    with pytest.raises(RpcError) as caught:
        await exec_.start()
    assert caught.value.code is Code.FAILED_PRECONDITION
    await exec_.delete()
    await process.call("Resume")
    await process.kill(9)
    await process.wait()
    await process.delete()


async def test_execs_of_a_container_end_with_it(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sleep", "1000")
    exec_ = await shim_pod.start_exec("sleep", "1000", container=process)
    await process.kill(9)
    assert await process.wait() == 137
    assert await exec_.wait() == 137
    await exec_.delete()
    await process.delete()
