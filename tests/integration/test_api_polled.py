"""Streams with an agent, or a runtime, that knows no raw ones: every byte travels in a call."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import anyio
import pytest

from shim_harness import Lab
from shim_pod import Pod

pytestmark = pytest.mark.integration

DATA = random.Random(1).randbytes(1 << 20)


@pytest.fixture(scope="module")
async def polled_pod(lab: Lab) -> AsyncIterator[Pod]:
    """A pod whose shim takes the agent for one without raw streams."""
    before = lab.leftovers()
    pod = await Pod.start(lab, launcher=lab.polling_launcher())
    try:
        yield pod
    finally:
        await pod.shim.close()
    assert before.settle() == []


async def test_a_mebibyte_in_and_out(polled_pod: Pod) -> None:
    finished = await polled_pod.run("sh", "-c", "tee /dev/stderr; exit 7", stdin=DATA)
    assert (finished.status, finished.stdout, finished.stderr) == (7, DATA, DATA)


async def test_an_exec(polled_pod: Pod) -> None:
    finished = await polled_pod.exec("sh", "-c", "cat; echo err >&2; exit 3", stdin=DATA)
    assert (finished.status, finished.stdout, finished.stderr) == (3, DATA, b"err\n")


async def test_output_is_complete_when_the_process_ends_at_once(polled_pod: Pod) -> None:
    finished = await polled_pod.run("head", "-c", "200000", "/dev/zero")
    assert (finished.status, finished.stdout) == (0, bytes(200_000))


async def test_close_io(polled_pod: Pod) -> None:
    process = await polled_pod.start_container("cat", stdin=True)
    stdin, stdout = process.streams.stdin, process.streams.stdout
    assert stdin is not None
    assert stdout is not None
    await stdin.write(b"some\n")
    await process.close_stdin()
    assert await stdout.read_all() == b"some\n"
    assert await process.wait() == 0
    await process.delete()


async def test_a_process_without_streams_neither_waits_nor_stalls(polled_pod: Pod) -> None:
    process = await polled_pod.start_container(
        "sh", "-c", "head -c 3000000 /dev/zero; cat; exit 3", output=False
    )
    with anyio.fail_after(30):
        assert await process.wait() == 3
    await process.delete()


async def test_a_terminal(polled_pod: Pod) -> None:
    streams = {"terminal": True, "stdin": True}
    exec_ = await polled_pod.add_exec(
        "sh", "-c", "stty size; read line; echo got $line; exit 4", streams=streams
    )
    await exec_.resize(77, 11)
    await exec_.start()
    stdin, stdout = exec_.streams.stdin, exec_.streams.stdout
    assert stdin is not None
    assert stdout is not None
    await stdout.read_until(b"11 77\r\n")
    await stdin.write(b"it\n")
    await stdout.read_until(b"got it\r\n")
    assert await exec_.wait() == 4
    await exec_.delete()
