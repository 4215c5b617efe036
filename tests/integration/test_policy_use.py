"""No rule of the shim's policy is in vain: each call is made by some scenario, or says why it must stay.

The shim runs under a filter that allows next to nothing, in the mode that lets calls through and counts them:
so the broker's record names every call that is made after the seal.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from kata_agent.ttrpc.status import ConnectionClosedError
from kata_hypervisor.driver_policy import rules_of
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.policy import PROCESS, load_policy
from kata_runtime.containerd_api import task_pb2
from shim_harness import Lab, connect
from shim_pod import Pod
from shipped_configuration import Value

pytestmark = pytest.mark.integration

# What the handover of the listener itself takes: nobody answers a notification before it.
HANDOVER = ("sendmsg", "epoll_wait", "epoll_ctl", "getpid", "clock_gettime")

# Calls that no scenario here makes, and why they are allowed all the same.
UNSEEN = {
    "brk": "malloc grows its heap with it, when it has to",
    "mmap": "memory, when a large piece of it is wanted",
    "munmap": "memory, when a large piece of it is given back",
    "mremap": "a large buffer that grows",
    "madvise": "malloc gives memory back",
    "futex": "locks, when two threads want one: a shim on QEMU has one thread",
    "clock_gettime": "where the vDSO has no clock that it can read",
    "restart_syscall": "made by the kernel itself, after a stop",
    "rt_sigreturn": "the end of a signal's handler",
    "rt_sigprocmask": "raise, abort, and the start and end of threads",
    "gettid": "raise and abort",
    "tgkill": "raise and abort",
    "exit": "a thread's end",
    "exit_group": "the shim's end, which nobody is left to count",
    "clone3": "answered with an errno, see the policy",
    "getpeername": "answered with an errno, see the policy",
}


def counting_launcher(lab: Lab) -> Path:
    """A shim whose policy has no rules but those of the handover."""
    path = lab.directory / "shim-counting"
    line = "from kata_runtime.shim.launcher import main\n"
    text = lab.launcher.read_text()
    assert line in text
    patch = f"""
import kata_hypervisor.seccomp.compiled as compiled
import kata_hypervisor.seccomp.policy as policy

shipped = compiled.program_of


def program_of(program, *arguments, **options):
    return (shipped if program else compiled.compile_program)(program, *arguments, **options)


compiled.program_of = program_of
original = policy.Policy.select


def select(self, features, thread="process"):
    rules = original(self, features, thread)
    if self.source != 'x86_64.toml':
        return rules  # that of a child, or of the broker
    return tuple(rule for rule in rules if set(rule.calls) & set({HANDOVER!r}))


policy.Policy.select = select
"""
    path.write_text(text.replace(line, patch + line))
    path.chmod(0o755)
    return path


async def test_every_call_of_the_policy_is_needed(lab: Lab) -> None:
    values: dict[str, Value] = {"runtime.enable_debug": True, "runtime.shim_seccomp": "log"}
    configuration = lab.configure(lab.new_id("counting"), **values)
    pod = await Pod.start(
        lab, environment={"KATA_CONF_FILE": str(configuration)}, launcher=counting_launcher(lab)
    )
    assert (await pod.run("cat", stdin=b"x" * 100_000)).text == "x" * 100_000
    assert (await pod.exec("sh", "-c", "echo out; echo err >&2; exit 3")).status == 3
    terminal = await pod.start_container("sh", "-c", "stty size", terminal=True)
    await terminal.finish()
    sleeper = await pod.start_container("sleep", "1000")
    for call in ("Pause", "Resume", "Stats", "Pids", "State"):
        await sleeper.call(call)
    await sleeper.call("Kill", signal=9)
    assert await sleeper.wait() == 137
    await sleeper.delete()
    again = await connect(pod.shim.address)  # as containerd does after its own restart
    request = task_pb2.ConnectRequest(id=pod.shim.id)
    await again.call("containerd.task.v2.Task", "Connect", request, task_pb2.ConnectResponse)
    await again.aclose()
    identity = next(i for i in lab.sandboxes if i.id == pod.shim.id)
    record = json.loads(Path(identity.directory, "seal.json").read_text())
    with contextlib.suppress(ConnectionClosedError):  # the broker goes first, and answers no call any more
        await pod.shim.task("Shutdown", id=pod.shim.id, now=True)
    await pod.shim.ended()
    await pod.shim.close()
    made = {*record["calls"], *HANDOVER}
    rules = rules_of(load_policy(), "qemu", PROCESS)
    allowed = {call for rule in rules for call in rule.calls if rule.action == actions.ALLOW}
    refused = {call for rule in rules for call in rule.calls} - allowed
    unneeded = sorted(allowed - made - UNSEEN.keys())
    assert not unneeded, f"no scenario makes these calls: take them out, or say why in UNSEEN: {unneeded}"
    # The record names what would have been a violation, but for the empty policy.
    assert sorted(made - allowed - refused) == []
