"""The seal of the shim: in force by the kernel's word, small, and loud when it refuses something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.seccomp import confinement
from kata_hypervisor.seccomp.readback import read_filters
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import survey
from kata_runtime.containerd_api import types_pb2
from kata_runtime.shim.debug_service import PROVOKE, SERVICE
from oci_bundle import make_process, make_spec
from shim_harness import Lab, Shim
from shim_pod import Pod

pytestmark = pytest.mark.integration

# Held for ever: a change that raises one of these needs a reason in SPECIFICATION.md.
MOST_CALLS = 31
HIGHEST_SCORE = 27.15


async def shim_pid(shim: Shim) -> int:
    return int((await shim.task("Connect", id=shim.id)).shim_pid)


async def provoke(shim: Shim) -> None:
    await shim.client.call(SERVICE, PROVOKE, Empty(), Empty, timeout=10)


async def debugged(lab: Lab, **runtime: Any) -> Pod:
    """A pod whose runtime debugs."""
    values = {"enable_debug": True, **runtime}
    path = lab.configure(lab.new_id("seal"), **{f"runtime.{key}": value for key, value in values.items()})
    return await Pod.start(lab, environment={"KATA_CONF_FILE": str(path)})


def seal_of(pod: Pod) -> dict[str, Any]:
    """What the broker has written down of the seal."""
    identity = next(i for i in pod.shim.lab.sandboxes if i.id == pod.shim.id)
    return dict(json.loads(Path(identity.directory, "seal.json").read_text()))


async def test_every_thread_is_sealed_and_little_is_left(shim_pod: Pod) -> None:
    pid = await shim_pid(shim_pod.shim)
    threads = confinement.read_threads(pid)
    assert {(thread.mode, thread.no_new_privs) for thread in threads} == {(2, True)}
    for thread in threads:
        surface = surface_of(survey(read_filters(thread.tid)))
        assert surface.allowed <= MOST_CALLS, surface
        assert surface.score <= HIGHEST_SCORE, surface
        assert (surface.escape, surface.gaps) == ((), ())


async def test_the_start_line_says_so(shim_pod: Pod) -> None:
    assert "; sealed by policy x86_64 [broker serial serve stdio], mode enforce" in shim_pod.shim.log


async def test_a_forbidden_call_ends_the_pod_and_explains_itself(lab: Lab) -> None:
    before = lab.leftovers()
    pod = await debugged(lab)
    sleeper = await pod.start_container("sleep", "1000")
    pid = await shim_pid(pod.shim)
    await provoke(pod.shim)
    named = f"seccomp: the runtime's process called execve (59) on thread kata-shim (tid {pid})"
    assert await sleeper.wait() == 137
    finished = await sleeper.finish()
    assert finished.stderr.decode().startswith(f"kata: container {sleeper.id} was stopped: {named}")
    with pytest.raises(RpcError) as caught:
        await pod.add_exec("true")
    assert caught.value.code is Code.FAILED_PRECONDITION
    await pod.shim.ended()
    assert named in pod.shim.log
    assert 'shim_seccomp = \\"log\\"' in pod.shim.log
    await pod.shim.close()
    answer = await lab.launch("delete", pod.shim.bundle, pod.shim.id)
    assert answer.returncode == 0
    assert answer.stderr.decode().startswith(named)
    assert before.settle() == []


async def test_in_log_mode_calls_are_named_and_made(lab: Lab) -> None:
    pod = await debugged(lab, shim_seccomp="log")
    for _ in range(3):
        await provoke(pod.shim)
    assert (await pod.run("echo", "alive")).text == "alive\n"
    assert seal_of(pod) == {
        "mode": "log",
        "policy": "x86_64 [broker serial serve stdio]",
        "calls": {"uname": 3},
    }
    assert pod.shim.log.count("called uname (63) on thread kata-shim") == 1
    assert "it was let through" in pod.shim.log
    await pod.shim.close()


async def test_off_is_off_and_says_so(lab: Lab) -> None:
    pod = await debugged(lab, shim_seccomp="off")
    threads = confinement.read_threads(await shim_pid(pod.shim))
    assert {thread.filters for thread in threads} == {confinement.inherited_filters()}
    assert 'level=warning msg="the runtime\'s process runs without a seccomp filter"' in pod.shim.log
    with pytest.raises(RpcError) as caught:
        await provoke(pod.shim)
    assert caught.value.code is Code.UNIMPLEMENTED
    await pod.shim.close()


async def test_only_a_shim_that_debugs_is_provoked(shim_pod: Pod) -> None:
    with pytest.raises(RpcError, match="set enable_debug = true"):
        await provoke(shim_pod.shim)
    assert seal_of(shim_pod)["calls"] == {}


async def test_a_sealed_sandbox_gets_nothing_that_it_did_not_have(shim_pod: Pod) -> None:
    """What a shim that a guest owns would pass on: containerd's requests look like its own."""
    etc = types_pb2.Mount(type="bind", source="/etc", options=["rbind", "rw"])
    with pytest.raises(RpcError, match="cannot mount /etc: the sandbox is sealed"):
        await shim_pod.run("true", rootfs=[etc])
    shim = shim_pod.shim
    name = shim.lab.new_id("c")
    bundle = shim.lab.bundle(name, shim_pod.spec("true"))
    how: dict[str, Any] = {"id": name, "bundle": str(bundle), "rootfs": [shim.lab.overlay(name)]}
    with pytest.raises(RpcError, match=r"cannot open the log /etc/cron\.d/x: the sandbox is sealed"):
        await shim.task("Create", stdout="file:///etc/cron.d/x", **how)
    with pytest.raises(RpcError, match=r"cannot open the FIFO /dev/null: the sandbox is sealed"):
        await shim.task("Create", stdout="/dev/null", **how)
    other = shim.lab.bundle(shim.lab.new_id("c"), make_spec(make_process("true")))
    with pytest.raises(RpcError, match=r"config\.json is not of a container of the sandbox"):
        await shim.task("Create", id="other", bundle=str(other), rootfs=[])
    assert (await shim_pod.run("echo", "alive")).text == "alive\n"
