"""Standard streams: every byte, in order, whoever comes late or leaves early."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import anyio
import pytest
from google.protobuf.any_pb2 import Any as PackedAny

from kata_agent.ttrpc.status import RpcError
from oci_bundle import make_process, make_spec
from shim_harness import Lab
from shim_pod import Pod

pytestmark = pytest.mark.integration

MIB = 1 << 20


def noise(size: int) -> bytes:
    """The same bytes each time, of all values."""
    return random.Random(size).randbytes(size)


# -- input -------------------------------------------------------------------------------------------------


async def test_input_from_a_writer_that_closes(shim_pod: Pod) -> None:
    data = noise(100_000)
    assert (await shim_pod.run("cat", stdin=data)).stdout == data


async def test_large_input(shim_pod: Pod) -> None:
    data = noise(16 * MIB)
    finished = await shim_pod.run("sha256sum", stdin=data)
    assert finished.text.split()[0] == hashlib.sha256(data).hexdigest()


async def test_close_io_ends_the_input_although_the_writer_stays(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("cat", stdin=True)
    stdin, stdout = process.streams.stdin, process.streams.stdout
    assert stdin is not None
    assert stdout is not None
    await stdin.write(b"before the end\n")
    await process.close_stdin()
    assert await stdout.read_all() == b"before the end\n"
    assert await process.wait() == 0
    await process.delete()


async def test_close_io_before_any_input(shim_pod: Pod) -> None:
    process = await shim_pod.create("cat", stdin=True)
    await process.close_stdin()
    await process.start()
    with anyio.fail_after(30):
        assert await process.wait() == 0
    await process.delete()


async def test_a_process_that_does_not_read_does_not_hold_its_end_up(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sh", "-c", "head -c 3; echo; exit 5", stdin=True)
    stdin, stdout = process.streams.stdin, process.streams.stdout
    assert stdin is not None
    assert stdout is not None
    await stdin.write(b"abcdef")
    assert await stdout.read_all() == b"abc\n"
    assert await process.wait() == 5
    assert await process.delete() == 5


async def test_without_a_stdin_there_is_nothing_to_read(shim_pod: Pod) -> None:
    assert (await shim_pod.run("cat")).text == ""


# -- output ------------------------------------------------------------------------------------------------


async def test_large_binary_output(shim_pod: Pod) -> None:
    script = (
        "head -c 2097152 /dev/urandom > /run/x; all() { for i in $(seq 25); do cat /run/x; done; }; "
        "all | sha256sum >&2; all"
    )
    finished = await shim_pod.run("sh", "-c", script)
    assert (finished.status, len(finished.stdout)) == (0, 50 * MIB)
    assert finished.stderr.split()[0].decode() == hashlib.sha256(finished.stdout).hexdigest()


async def test_standard_error_is_apart(shim_pod: Pod) -> None:
    finished = await shim_pod.run("sh", "-c", "echo out; echo err >&2; printf '\\0\\377' ; printf '\\1' >&2")
    assert (finished.stdout, finished.stderr) == (b"out\n\x00\xff", b"err\n\x01")


async def test_a_reader_that_comes_after_the_end_finds_everything(shim_pod: Pod) -> None:
    process = await shim_pod.create("sh", "-c", "echo early; echo error >&2", late=True)
    await process.start()
    assert await process.wait() == 0
    process.streams.open_outputs()
    finished = await process.finish()
    assert (finished.stdout, finished.stderr) == (b"early\n", b"error\n")


async def test_a_late_reader_of_more_than_a_pipe_holds(shim_pod: Pod) -> None:
    process = await shim_pod.create("sh", "-c", "yes | head -c 5000000", late=True)
    await process.start()
    await anyio.sleep(0.5)
    process.streams.open_outputs()
    finished = await process.finish()
    assert (finished.status, finished.stdout) == (0, b"y\n" * 2_500_000)


async def test_a_reader_that_goes_and_comes_again_misses_nothing(shim_pod: Pod) -> None:
    script = "echo one; read x; echo two; read x; echo three"
    process = await shim_pod.start_container("sh", "-c", script, stdin=True)
    stdin, stdout = process.streams.stdin, process.streams.stdout
    assert stdin is not None
    assert stdout is not None
    assert await stdout.read_until(b"\n") == b"one\n"
    stdout.close()
    await stdin.write(b"\n")
    await anyio.sleep(0.3)
    stdout.open()
    assert await stdout.read_until(b"\n") == b"two\n"
    await stdin.write(b"\n")
    finished = await process.finish()
    assert (finished.status, finished.stdout) == (0, b"three\n")


async def test_output_is_complete_when_the_process_ends_at_once(shim_pod: Pod) -> None:
    async def check(number: int) -> None:
        finished = await shim_pod.exec("sh", "-c", f"head -c 70000 /dev/zero; echo {number}")
        assert (finished.status, finished.stdout) == (0, bytes(70000) + f"{number}\n".encode())

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(check, number)


async def test_output_of_a_child_that_outlives_the_exec_does_not_hold_it_up(shim_pod: Pod) -> None:
    exec_ = await shim_pod.start_exec("sh", "-c", "(sleep 2; echo late) & echo now")
    assert exec_.streams.stdout is not None
    assert await exec_.wait() == 0
    assert await exec_.streams.stdout.read_all() == b"now\nlate\n"
    assert await exec_.delete() == 0


async def test_without_any_stream_the_output_is_dropped(shim_pod: Pod) -> None:
    process = await shim_pod.start_container(
        "sh", "-c", "head -c 5000000 /dev/zero; cat; exit 3", output=False
    )
    with anyio.fail_after(30):
        assert await process.wait() == 3
    await process.delete()


async def test_output_to_a_file(lab: Lab) -> None:
    name = lab.new_id("logged")
    log = lab.directory / "container.log"
    shim = await lab.start_shim(name, make_spec(make_process("sh", "-c", "echo out; echo err >&2")))
    mounts = [lab.overlay(name)]
    to = f"file://{log}"
    await shim.task("Create", id=name, bundle=str(shim.bundle), rootfs=mounts, stdout=to, stderr=to)
    await shim.task("Start", id=name)
    assert (await shim.task("Wait", id=name)).exit_status == 0
    await shim.task("Delete", id=name)
    await shim.close()
    assert sorted(log.read_text().split()) == ["err", "out"]


# -- loggers -----------------------------------------------------------------------------------------------

LOGGER = """#!/bin/sh
cd "$(dirname "$0")"
env >env
printf '%s\\n' "$@" >argv
echo x >&5
exec 5>&-
cat <&4 >err &
cat <&3 >out
wait
sleep 0.3
echo drained >end
"""


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
async def test_output_to_a_logger(lab: Lab, scheme: str) -> None:
    name = lab.new_id(scheme)
    directory = lab.directory / name
    directory.mkdir()
    logger = directory / "logger"
    logger.write_text(LOGGER)
    logger.chmod(0o755)
    script = "head -c 300000 /dev/zero; echo err >&2"
    shim = await lab.start_shim(name, make_spec(make_process("sh", "-c", script)))
    mounts, to = [lab.overlay(name)], f"{scheme}://{logger}?key=a%20value"
    await shim.task("Create", id=name, bundle=str(shim.bundle), rootfs=mounts, stdout=to, stderr=to)
    await shim.task("Start", id=name)
    assert (await shim.task("Wait", id=name)).exit_status == 0
    await shim.task("Delete", id=name)
    await shim.close()
    assert (directory / "out").read_bytes() == bytes(300000)
    assert (directory / "err").read_text() == "err\n"
    assert (directory / "end").read_text() == "drained\n"
    assert (directory / "argv").read_text() == "key\na value\n"
    assert f"CONTAINER_ID={name}\n" in (directory / "env").read_text()


async def test_no_logger_is_started_for_a_guest_that_runs(shim_pod: Pod) -> None:
    started = shim_pod.shim.lab.directory / "started"
    logger = shim_pod.shim.lab.directory / "late-logger"
    logger.write_text(f"#!/bin/sh\ntouch {started}\n")
    logger.chmod(0o755)
    to: dict[str, Any] = {"stdout": f"binary://{logger}", "stderr": f"binary://{logger}"}
    shim, container, refusal = (
        shim_pod.shim,
        shim_pod.shim.lab.new_id("c"),
        "only a pod's first container has",
    )
    bundle = str(shim.lab.bundle(container, shim_pod.spec("true")))
    with pytest.raises(RpcError, match=refusal):
        await shim.task("Create", id=container, bundle=bundle, rootfs=[shim.lab.overlay(container)], **to)
    spec = PackedAny(value=json.dumps(make_process("true")).encode())
    await shim.task("Exec", id=shim_pod.first.id, exec_id="logged", spec=spec, **to)
    with pytest.raises(RpcError, match=refusal):
        await shim.task("Start", id=shim_pod.first.id, exec_id="logged")
    await shim.task("Delete", id=shim_pod.first.id, exec_id="logged")
    assert not started.exists()


async def test_a_logger_that_is_never_ready_fails_the_create(lab: Lab) -> None:
    name = lab.new_id("unready")
    shim = await lab.start_shim(name, make_spec(make_process("true")))
    mounts, to = [lab.overlay(name)], "binary-v2:///bin/true"
    with pytest.raises(RpcError, match="ended before it was ready"):
        await shim.task("Create", id=name, bundle=str(shim.bundle), rootfs=mounts, stdout=to, stderr=to)
    await shim.close()
