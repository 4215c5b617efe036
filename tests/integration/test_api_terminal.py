"""Containers and execs with a terminal."""

from __future__ import annotations

import pytest

from kata_agent.ttrpc.status import Code, RpcError
from shim_pod import Pod
from shim_process import Process

pytestmark = pytest.mark.integration


async def typed(process: Process, text: bytes, expected: bytes) -> bytes:
    """Type something and read until the answer."""
    assert process.streams.stdin is not None
    assert process.streams.stdout is not None
    await process.streams.stdin.write(text)
    return await process.streams.stdout.read_until(expected)


async def test_all_three_streams_are_one_terminal(shim_pod: Pod) -> None:
    script = "for fd in 0 1 2; do test -t $fd && readlink /proc/self/fd/$fd; done; echo out; echo err >&2"
    process = await shim_pod.start_container("sh", "-c", script, terminal=True, stdin=True)
    finished = await process.finish()
    lines = finished.stdout.split(b"\r\n")
    assert len(set(lines[:3])) == 1
    assert lines[0].startswith(b"/dev/pts/")
    assert lines[3:] == [b"out", b"err", b""]
    assert (finished.status, finished.stderr) == (0, b"")


async def test_size_before_and_after_the_start(shim_pod: Pod) -> None:
    script = "stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    process = await shim_pod.create("sh", "-c", script, terminal=True, stdin=True)
    await process.resize(100, 30)
    await process.start()
    assert process.streams.stdout is not None
    assert await process.streams.stdout.read_until(b"ready\r\n") == b"30 100\r\nready\r\n"
    await process.resize(132, 43)
    assert await process.streams.stdout.read_until(b"\r\n") == b"43 132\r\n"
    await process.kill(9)
    await process.wait()
    await process.delete()


async def test_control_c_interrupts_and_input_is_echoed(shim_pod: Pod) -> None:
    process = await shim_pod.start_container(
        "sh", terminal=True, stdin=True, process={"env": ["PATH=/bin", "PS1=> "]}
    )
    # In one process group, so that there is always somebody in it to be interrupted.
    await typed(process, b"sh -c 'echo go; sleep 1000'\n", b"\r\ngo\r\n")
    await typed(process, b"\x03", b"^C")
    assert b"status 130" in await typed(process, b"echo status $?\n", b"status 130\r\n")
    await typed(process, b"exit 9\n", b"exit 9")
    assert await process.wait() == 9
    await process.delete()


async def test_control_d_ends_a_shell(shim_pod: Pod) -> None:
    process = await shim_pod.start_container(
        "sh", terminal=True, stdin=True, process={"env": ["PATH=/bin", "PS1=> "]}
    )
    assert process.streams.stdin is not None
    assert process.streams.stdout is not None
    await process.streams.stdout.read_until(b"> ")
    await process.streams.stdin.write(b"\x04")
    assert await process.wait() == 0
    await process.delete()


async def test_a_client_that_detaches_and_attaches_again(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("cat", terminal=True, stdin=True)
    stdin, stdout = process.streams.stdin, process.streams.stdout
    assert stdin is not None
    assert stdout is not None
    await typed(process, b"one\n", b"one\r\none\r\n")
    stdin.close()
    stdout.close()
    stdout.open()
    assert (await process.state()).status != 3  # STOPPED
    await typed(process, b"two\n", b"two\r\ntwo\r\n")
    await process.kill(9)
    await process.wait()
    await process.delete()


async def test_exec_with_a_terminal(shim_pod: Pod) -> None:
    streams = {"terminal": True, "stdin": True}
    exec_ = await shim_pod.add_exec(
        "sh", "-c", "stty size; read line; echo got $line; exit 4", streams=streams
    )
    await exec_.resize(77, 11)
    await exec_.start()
    assert exec_.streams.stdout is not None
    await exec_.streams.stdout.read_until(b"11 77\r\n")
    assert b"got it\r\n" in await typed(exec_, b"it\n", b"got it\r\n")
    assert await exec_.wait() == 4
    assert await exec_.delete() == 4


async def test_resize_without_a_terminal_is_refused(shim_pod: Pod) -> None:
    with pytest.raises(RpcError) as caught:
        await shim_pod.first.resize(80, 25)
    assert caught.value.code is Code.FAILED_PRECONDITION
