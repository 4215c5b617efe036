"""Namespaces of processes and IPC: a container's own, its pod's, another's, and never the host's."""

from __future__ import annotations

from typing import Any

import pytest

from kata_agent.ttrpc.status import RpcError
from oci_bundle import NAMESPACES
from shim_harness import Lab
from shim_pod import Pod

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

OF_POD = "/proc/1/ns/pid"
"""What containerd names: the process that the shim says is a container's, in every container of a pod."""


def namespaces(**changes: str | None) -> dict[str, Any]:
    """The usual ones, with these paths; None leaves one out."""
    found = [{"type": kind} for kind in NAMESPACES if changes.get(kind, "") is not None]
    for entry in found:
        if path := changes.get(entry["type"]):
            entry["path"] = path
    return {"namespaces": found}


async def test_a_container_has_processes_of_its_own_or_shares_its_pods(shim_pod: Pod) -> None:
    own = await shim_pod.run("sh", "-c", "echo $$; ps")
    assert own.text.startswith("1\n")
    assert "sleep 100000" not in own.text
    shared = await shim_pod.run(
        "sh", "-c", "echo $$; ps; kill -0 1 && echo reached", linux=namespaces(pid=OF_POD)
    )
    assert not shared.text.startswith("1\n")
    assert "1 root     sleep 100000" in shared.text
    assert shared.text.endswith("reached\n")


async def test_a_container_with_a_target_shares_the_targets_processes(lab: Lab) -> None:
    """As an ephemeral container does: its target is the one container with processes of its own."""
    pod = await Pod.start(lab)
    target = await pod.start_container("sleep", "4242")
    debug = await pod.run("ps", linux=namespaces(pid=OF_POD))
    assert "1 root     sleep 4242" in debug.text
    assert "sleep 100000" not in debug.text
    await pod.start_container("sleep", "4343")
    with pytest.raises(RpcError, match="of 2 that have their own it cannot be told which"):
        await pod.create("true", linux=namespaces(pid=OF_POD))
    await target.kill(9)
    await pod.shim.close()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("pid", "cannot use the host's processes (its specification has no pid namespace: hostPID"),
        ("ipc", "cannot use the host's shared memory and message queues (its specification has no ipc"),
    ],
)
async def test_a_namespace_of_the_host_is_refused(shim_pod: Pod, kind: str, sentence: str) -> None:
    with pytest.raises(RpcError) as error:
        await shim_pod.create("true", linux=namespaces(**dict.fromkeys([kind])))
    assert sentence in error.value.message


async def test_labels_of_the_hosts_security_modules_are_warned_of_by_name(shim_pod: Pod) -> None:
    process = {"apparmorProfile": "only-here", "selinuxLabel": "system_u:system_r:here_t:s0"}
    finished = await shim_pod.run("echo", "runs", process=process)
    assert finished.text == "runs\n"
    said = shim_pod.shim.log.replace('\\"', '"')
    assert 'not in force in the guest: process.apparmorProfile "only-here", process.selinuxLabel "sys' in said
