"""The sandbox service: a pod without a container of its own."""

from __future__ import annotations

import hashlib
import platform
from contextlib import closing

import anyio
import pytest
from google.protobuf.any_pb2 import Any as PackedAny

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.containerd_api import metrics_pb2, runtimeoptions_pb2
from kata_runtime.shim.protobuf_lite import bytes_field
from network_bed import Netns
from oci_bundle import make_process, make_spec
from shim_harness import Lab
from shim_pod import SANDBOX, TYPE

pytestmark = pytest.mark.integration


async def test_a_sandbox_from_its_creation_to_its_end(lab: Lab) -> None:
    before = lab.leftovers()
    name = lab.new_id("sandbox")
    shim = await lab.start_shim(name, "{}")
    (shim.bundle / "config.json").unlink()  # a sandbox's bundle may have none

    with pytest.raises(RpcError) as caught:
        await shim.sandbox("StartSandbox")
    assert caught.value.code is Code.FAILED_PRECONDITION
    with pytest.raises(RpcError) as caught:
        await shim.sandbox("PingSandbox", sandbox_id="another")
    assert caught.value.code is Code.NOT_FOUND

    options = PackedAny()
    options.Pack(runtimeoptions_pb2.Options(config_path=str(lab.configuration)))
    await shim.sandbox("CreateSandbox", bundle_path=str(shim.bundle), options=options)
    with pytest.raises(RpcError) as caught:
        await shim.sandbox("CreateSandbox", bundle_path=str(shim.bundle))
    assert caught.value.code is Code.ALREADY_EXISTS
    assert (await shim.sandbox("SandboxStatus")).state == "SANDBOX_NOTREADY"

    started = await shim.sandbox("StartSandbox")
    assert started.pid > 0
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    answer = (await shim.sandbox("Platform")).platform
    assert (answer.os, answer.architecture) == ("linux", machine)
    await shim.sandbox("PingSandbox")
    status = await shim.sandbox("SandboxStatus", verbose=True)
    assert (status.state, status.pid, status.created_at) == ("SANDBOX_READY", started.pid, started.created_at)
    assert status.info["configuration"] == str(lab.configuration)
    assert status.info["configuration-sha256"] == hashlib.sha256(lab.configuration.read_bytes()).hexdigest()
    assert status.info["hypervisor"] == "qemu"
    with pytest.raises(RpcError) as caught:
        await shim.sandbox("StartSandbox")
    assert caught.value.code is Code.FAILED_PRECONDITION

    annotations = {TYPE: "container", SANDBOX: name}
    process = await shim.create(
        make_spec(make_process("sh", "-c", "echo in; exit 8"), annotations=annotations)
    )
    await process.start()
    finished = await process.finish()
    assert (finished.status, finished.stdout) == (8, b"in\n")
    # The machine is the sandbox's, and outlives its containers.
    assert (await shim.sandbox("SandboxStatus")).state == "SANDBOX_READY"
    process = await shim.create(make_spec(make_process("sleep", "1000"), annotations=annotations))
    await process.start()
    packed = (await shim.sandbox("SandboxMetrics")).metrics
    assert (packed.id, packed.data.type_url) == (name, "io.containerd.cgroups.v1.Metrics")
    assert metrics_pb2.Metrics.FromString(packed.data.value).pids.current == 1

    waited: list[int] = []

    async def wait() -> None:
        waited.append((await shim.sandbox("WaitSandbox")).exit_status)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await shim.sandbox("StopSandbox")
        with anyio.fail_after(30):
            assert await process.wait() == 137
    assert waited == [137]
    status = await shim.sandbox("SandboxStatus")
    assert (status.state, status.exited_at.seconds > 0) == ("SANDBOX_NOTREADY", True)
    assert await process.delete() == 137
    await shim.sandbox("StopSandbox")  # again does no harm
    await shim.sandbox("ShutdownSandbox")
    await shim.ended()
    await shim.close()
    assert before.settle() == []


async def test_a_sandbox_that_cannot_start_says_why(lab: Lab) -> None:
    before = lab.leftovers()
    name = lab.new_id("sandbox")
    shim = await lab.start_shim(name, "{}")
    (shim.bundle / "config.json").unlink()
    options = PackedAny()
    options.Pack(runtimeoptions_pb2.Options(config_path="/no/such/file.toml"))
    await shim.sandbox("CreateSandbox", bundle_path=str(shim.bundle), options=options)
    with pytest.raises(RpcError) as caught:
        await shim.sandbox("StartSandbox")
    assert "/no/such/file.toml" in caught.value.message
    await shim.sandbox("ShutdownSandbox")
    await shim.ended()
    await shim.close()
    assert before.settle() == []


def pod_config(name: str, value: str) -> PackedAny:
    """A PodSandboxConfig with one sysctl, as the CRI passes it."""
    entry = bytes_field(1, name) + bytes_field(2, value)
    return PackedAny(type_url="runtime.v1.PodSandboxConfig", value=bytes_field(8, bytes_field(3, entry)))


async def test_a_pods_sysctls(lab: Lab) -> None:
    before = lab.leftovers()
    name = lab.new_id("sandbox")
    shim = await lab.start_shim(name, "{}")
    (shim.bundle / "config.json").unlink()
    with closing(Netns("sandbox")) as namespace:
        fields = {"bundle_path": str(shim.bundle), "netns_path": str(namespace.path)}
        with pytest.raises(RpcError) as caught:
            await shim.sandbox("CreateSandbox", options=pod_config("vm.swappiness", "1"), **fields)
        assert "cannot set the sysctl vm.swappiness for a pod" in caught.value.message
        port = "net.ipv4.ip_unprivileged_port_start"
        await shim.sandbox("CreateSandbox", options=pod_config(port, "777"), **fields)
        await shim.sandbox("StartSandbox")
        annotations = {TYPE: "container", SANDBOX: name}
        read = make_process("cat", f"/proc/sys/{port.replace('.', '/')}")
        process = await shim.create(make_spec(read, annotations=annotations))
        await process.start()
        assert (await process.finish()).stdout == b"777\n"
        await shim.sandbox("StopSandbox")
        await shim.sandbox("ShutdownSandbox")
        await shim.ended()
        await shim.close()
    assert before.settle() == []
