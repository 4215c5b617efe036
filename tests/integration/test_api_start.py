"""`start` and `delete` in all their dialects; a start that fails leaves one clear error and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.containerd_api import runtimeoptions_pb2, task_pb2
from kata_runtime.containerd_api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from oci_bundle import make_process, make_spec
from shim_harness import Lab, Shim, connect
from shim_pod import SANDBOX, TYPE, Pod
from shim_process import Process

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
async def nothing_left_of(lab: Lab) -> AsyncIterator[None]:
    """Each test leaves the host as it was."""
    before = lab.leftovers()
    yield
    assert before.settle() == []


def sleeper(**changes: Any) -> dict[str, Any]:
    return make_spec(make_process("sleep", "1000"), **changes)


async def run_true(shim: Shim, name: str) -> None:
    """Use the shim for what it is: create, start, wait, delete."""
    process = await shim.create(container_id=name)
    await process.start()
    assert (await process.finish()).status == 0


# -- dialects ----------------------------------------------------------------------------------------------


async def test_plain_from_start_to_the_end_of_the_shim(lab: Lab) -> None:
    name = lab.new_id("plain")
    shim = await lab.start_shim(name, make_spec(make_process("true"), cgroup=f"/{lab.namespace}/{name}"))
    assert shim.address == f"unix://{lab.sandboxes[-1].socket}"
    assert (shim.bundle / "address").read_text() == shim.address
    pid = int((shim.bundle / "shim.pid").read_text())
    assert Path(f"/proc/{pid}/comm").read_text() == "kata-shim\n"
    await run_true(shim, name)
    await lab.sink.wait_for(name, "delete")
    assert lab.sink.topics(name) == ["create", "start", "exit", "delete"]
    assert "level=info" in shim.log
    await shim.task("Shutdown", id=name)
    await shim.ended()
    await shim.close()


async def test_json_for_version_3(lab: Lab) -> None:
    name = lab.new_id("json")
    bundle = lab.bundle(name, make_spec(make_process("true")))
    answer = await lab.launch("start", bundle, name, environment={"KATA_SHIM_API": "3"})
    assert (answer.returncode, answer.stderr) == (0, b"")
    address = lab.identity(name).socket
    assert json.loads(answer.stdout) == {"version": 3, "address": f"unix://{address}", "protocol": "ttrpc"}
    shim = await Shim.connect(lab, name, bundle, f"unix://{address}")
    await shim.task("Shutdown", version=3, id=name, now=True)
    await shim.ended()
    await shim.close()


async def test_protobuf_with_its_own_socket_directory_events_and_configuration(lab: Lab) -> None:
    name = lab.new_id("protobuf")
    bundle = lab.bundle(name, make_spec(make_process("true")))
    directory = lab.directory / "s"
    configuration = lab.configure("other", default_memory=384)
    params = BootstrapParams(
        instance_id=name,
        namespace=lab.namespace,
        containerd_ttrpc_address=str(lab.sink.path),
        containerd_grpc_address=lab.address,
        socket_dir=str(directory),
    )
    options = runtimeoptions_pb2.Options(config_path=str(configuration))
    params.extensions.add().value.Pack(options)
    answer = await lab.launch(
        "start",
        bundle,
        name,
        stdin=params.SerializeToString(),
        environment={"TTRPC_ADDRESS": "", "KATA_CONF_FILE": ""},
    )
    assert (answer.returncode, answer.stderr) == (0, b"")
    result = BootstrapResult.FromString(answer.stdout)
    identity = lab.identity(name, socket_root=str(directory))
    assert (result.version, result.protocol, result.address) == (3, "ttrpc", f"unix://{identity.socket}")
    shim = await Shim.connect(lab, name, bundle, result.address)
    await run_true(shim, name)
    await lab.sink.wait_for(name, "delete")
    assert str(configuration) in shim.log
    await shim.close()
    directory.rmdir()


async def test_start_for_the_second_container_and_start_again_print_the_running_shims_address(
    lab: Lab,
) -> None:
    name = lab.new_id("pod")
    shim = await lab.start_shim(name, sleeper(annotations={TYPE: "sandbox"}))
    again = await lab.launch("start", shim.bundle, name)
    assert (again.returncode, again.stdout.decode(), again.stderr) == (0, shim.address, b"")
    member = lab.new_id("member")
    bundle = lab.bundle(
        member, make_spec(make_process("true"), annotations={TYPE: "container", SANDBOX: name})
    )
    second = await lab.launch("start", bundle, member)
    assert (second.returncode, second.stdout.decode(), second.stderr) == (0, shim.address, b"")
    assert (bundle / "address").read_text() == shim.address
    client = await connect(shim.address)
    with pytest.raises(RpcError) as caught:
        await client.call(
            "containerd.task.v3.Task", "State", task_pb2.StateRequest(id=member), task_pb2.StateResponse
        )
    assert caught.value.code is Code.NOT_FOUND
    await client.aclose()
    await shim.close()


async def test_start_of_a_container_whose_pod_does_not_run(lab: Lab) -> None:
    name = lab.new_id("member")
    bundle = lab.bundle(
        name, make_spec(make_process("true"), annotations={TYPE: "container", SANDBOX: "gone"})
    )
    answer = await lab.launch("start", bundle, name)
    assert (answer.returncode, answer.stdout, answer.stderr.count(b"\n")) == (1, b"", 1)
    assert b"the sandbox gone of container" in answer.stderr


# -- delete ------------------------------------------------------------------------------------------------


async def test_delete_after_the_shim_was_killed_cleans_up_and_answers_137(lab: Lab) -> None:
    name = lab.new_id("killed")
    shim = await lab.start_shim(name, sleeper(cgroup=f"/{lab.namespace}/{name}"))
    process = await shim.create(container_id=name)
    await process.start()
    os.kill((await process.call("Connect")).shim_pid, signal.SIGKILL)
    await shim.ended()
    answer = await lab.launch("delete", shim.bundle, name, "-bundle", str(shim.bundle))
    assert (answer.returncode, answer.stderr) == (0, b"")
    response = task_pb2.DeleteResponse.FromString(answer.stdout)
    assert (response.exit_status, response.exited_at.seconds > 0) == (137, True)
    process.streams.close()
    await shim.close()


async def test_delete_of_what_never_was(lab: Lab) -> None:
    name = lab.new_id("never")
    bundle = lab.bundle(name, sleeper())
    answer = await lab.launch("delete", bundle, name, "-bundle", str(bundle))
    assert (answer.returncode, answer.stderr) == (0, b"")
    assert task_pb2.DeleteResponse.FromString(answer.stdout).exit_status == 137


# -- failures ----------------------------------------------------------------------------------------------


async def refused(lab: Lab, name: str, spec: dict[str, Any] | str, **create: Any) -> RpcError:
    """The error of a Create that fails; the shim ends at Shutdown."""
    shim = await lab.start_shim(name, spec)
    with pytest.raises(RpcError) as caught:
        await shim.create(container_id=name, **create)
    await shim.task("Shutdown", id=name)
    await shim.ended()
    await shim.close()
    assert lab.sink.topics(name) == []
    return caught.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "must be an object"),
        ('{"process": {"args": []}}', "process.args must be a list"),
        ('{"process": {"args": ["x"], "cwd": "/"}}', "root.path is missing"),
    ],
)
async def test_a_malformed_bundle(lab: Lab, text: str, message: str) -> None:
    name = lab.new_id("malformed")
    error = await refused(lab, name, text)
    assert error.code is Code.INVALID_ARGUMENT
    assert message in error.message
    assert str(lab.directory / "bundles" / name / "config.json") in error.message
    assert "\n" not in error.message


async def test_a_missing_root(lab: Lab) -> None:
    error = await refused(lab, lab.new_id("rootless"), sleeper(root={"path": "absent"}), rootfs=())
    assert error.code is Code.INVALID_ARGUMENT
    assert "absent is not a directory" in error.message


async def test_a_program_that_does_not_exist_in_the_first_container(lab: Lab) -> None:
    name = lab.new_id("absent")
    shim = await lab.start_shim(name, make_spec(make_process("/no/such/program")))
    process = await shim.create(container_id=name)
    with pytest.raises(RpcError) as caught:
        await process.start()
    assert "/no/such/program" in caught.value.message.partition("\n")[0]
    assert await process.wait() == 137
    await process.delete()
    await shim.task("Shutdown", id=name)
    await shim.ended()
    await shim.close()
    assert lab.sink.topics(name) == ["create", "exit", "delete"]


async def test_a_configuration_that_cannot_be_read(lab: Lab) -> None:
    name = lab.new_id("unreadable")
    bundle = lab.bundle(name, sleeper())
    answer = await lab.launch("start", bundle, name, environment={"KATA_CONF_FILE": "/no/such/file.toml"})
    shim = await Shim.connect(lab, name, bundle, answer.stdout.decode())
    lab.identity(name)
    with pytest.raises(RpcError) as caught:
        await shim.create(container_id=name)
    assert "/no/such/file.toml" in caught.value.message
    await shim.close()


async def test_create_can_be_tried_again_after_it_failed(lab: Lab) -> None:
    name = lab.new_id("again")
    shim = await lab.start_shim(name, make_spec(make_process("true")))
    with pytest.raises(RpcError):
        await shim.task("Create", id=name, bundle=str(shim.bundle / "absent"))
    await run_true(shim, name)
    await shim.close()


async def test_nothing_runs_after_the_last_container_is_deleted(lab: Lab) -> None:
    name = lab.new_id("last")
    shim = await lab.start_shim(name, make_spec(make_process("true")))
    process: Process = await shim.create(container_id=name)
    await process.start()
    pid = (await process.call("Pids")).processes[0].pid
    assert (await process.finish()).status == 0
    assert not Path(f"/proc/{pid}").exists()
    await shim.close()


async def test_shutdown_now_ends_a_pod_whose_containers_run(lab: Lab) -> None:
    pod = await Pod.start(lab)
    await pod.start_container("sleep", "1000")
    await pod.shim.task("Shutdown", id=pod.shim.id, now=True)
    await pod.shim.ended()
    await pod.shim.close()


async def test_a_shim_without_a_container_ends_with_its_bundle(lab: Lab) -> None:
    """A client has died between start and Create, and removed the bundle: nobody can delete the shim."""
    name = lab.new_id("abandoned")
    shim = await lab.start_shim(name, sleeper())
    with pytest.raises(RpcError):
        await shim.task("State", id=name)
    shutil.rmtree(shim.bundle)
    await shim.ended()
    await shim.close()


async def test_a_shim_whose_last_container_was_deleted_ends_without_being_asked(lab: Lab) -> None:
    """containerd was killed between Delete and Shutdown, and does not know any more that the task is gone."""
    name = lab.new_id("lingers")
    shim = await lab.start_shim(name, make_spec(make_process("true")))
    process: Process = await shim.create(container_id=name)
    await process.start()
    assert (await process.finish()).status == 0
    await shim.ended()
    await shim.close()
