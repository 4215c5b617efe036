"""The error of a machine that failed: on a KVM that runs no unmodified guests, and when it is not the KVM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from kata_configuration import Configuration, load
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    KvmRefusedError,
    LaunchError,
    MachineFailedError,
)
from kata_runtime.broker.client import Broker
from kata_runtime.broker.errors import BrokerLostError
from kata_runtime.container.guest import Guest, GuestBoot, RunStage
from kata_runtime.errors import SandboxError
from kata_runtime.identity import SandboxIdentity
from kata_runtime.pod import kvm_failure
from kata_runtime.pod.boot import Boot

if TYPE_CHECKING:
    from kata_hypervisor.contract import Vmm

EMULATES = "this KVM only emulates: SSE2 arithmetic in the guest's kernel ended with KVM_EXIT_INTERNAL_ERROR"
ABORTED = "qemu was killed by SIGABRT before the guest was ready: kvm_buf_set_msrs: Assertion failed"
TO_TCG = 'accelerator = "tcg" in [hypervisor.qemu] to emulate (slow)'
WAYS_OUT = {
    "qemu": f"set {TO_TCG}",
    "clh": f'set hypervisor_name = "qemu" in [runtime] and {TO_TCG}',
    "firecracker": f'set hypervisor_name = "qemu" in [runtime] and {TO_TCG}',
    "dragonball": f'set hypervisor_name = "qemu" in [runtime] and {TO_TCG}',
}
FAILURES = [
    MachineFailedError(ABORTED),
    MachineFailedError("qemu failed to start: waiting for qemu's monitor: no answer within 30 s"),
    KvmRefusedError("cannot set up a virtual processor: KVM refuses its register MSR_IA32_MISC_ENABLE"),
    SandboxError("agent", "the guest's agent did not answer within 3 s, while the VMM runs"),
]


class ProbingBroker:
    """A broker that knows what a probe finds, and counts how often it is asked."""

    fault = ""

    def __init__(self, reason: str | Exception) -> None:
        self._reason = reason
        self.asked = 0

    async def prepare(self, cgroup: str | None, *, pinning: bool) -> None:
        pass

    async def take_user(self, base: int, count: int) -> int:
        return base

    async def learn_network(self, path: str | None, *, outside: bool) -> int:
        return 1

    async def missing_kvm_support(self) -> str:
        self.asked += 1
        if isinstance(self._reason, Exception):
            raise self._reason
        return self._reason


def configuration(directory: Path, name: str, settings: str = "") -> Configuration:
    path = directory / "configuration.toml"
    kernel = "" if name.startswith("solo5") else 'kernel = "/k"\nimage = "/i"\n'
    path.write_text(
        f'[hypervisor.{name}]\n{kernel}{settings}[runtime]\nhypervisor_name = "{name}"\n', encoding="utf-8"
    )
    return load(path, check_host=False)


async def explain(error: Exception, chosen: Configuration, broker: ProbingBroker) -> HostUnfitError | None:
    return await kvm_failure.explain(error, chosen, cast("Broker", broker))


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", WAYS_OUT)
async def test_the_first_line_says_what_the_probe_finds_and_the_way_out(
    tmp_path: Path, name: str, error: Exception
) -> None:
    unfit = await explain(error, configuration(tmp_path, name), ProbingBroker(EMULATES))
    first, _, rest = str(unfit).partition("\n")
    assert first == (
        f"cannot run a guest with KVM: {EMULATES}; {WAYS_OUT[name]}, and see kata-ctl check for this host"
    )
    assert rest == str(error)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_a_kvm_that_runs_guests_is_not_blamed(tmp_path: Path, error: Exception) -> None:
    broker = ProbingBroker("")
    assert await explain(error, configuration(tmp_path, "qemu"), broker) is None
    assert broker.asked == 1


@pytest.mark.parametrize(
    "error",
    [
        LaunchError("cannot start qemu: /usr/bin/qemu-system-x86_64: Exec format error"),
        HostUnfitError("cannot use KVM: /dev/kvm: No such file or directory"),
        ConfinementError("qemu is not confined"),
        SandboxError("rootfs", "there is none"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_says_its_cause_is_not_probed(tmp_path: Path, error: Exception) -> None:
    broker = ProbingBroker(EMULATES)
    assert await explain(error, configuration(tmp_path, "qemu"), broker) is None
    assert broker.asked == 0


@pytest.mark.parametrize(
    ("name", "settings"), [("qemu", 'accelerator = "tcg"\n'), ("solo5-hvt", ""), ("solo5-spt", "")]
)
async def test_what_needs_no_such_kvm_is_not_probed(tmp_path: Path, name: str, settings: str) -> None:
    broker = ProbingBroker(EMULATES)
    assert await explain(FAILURES[0], configuration(tmp_path, name, settings), broker) is None
    assert broker.asked == 0


async def test_a_broker_that_is_lost_leaves_the_error_as_it_is(tmp_path: Path) -> None:
    broker = ProbingBroker(BrokerLostError("the broker has ended"))
    assert await explain(FAILURES[0], configuration(tmp_path, "qemu"), broker) is None


class FailingGuest(GuestBoot):
    """A guest whose machine fails as it is configured, and which must be stopped all the same."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure
        self.machine = cast("Vmm", SimpleNamespace(console_tail="", warnings=()))
        self.stopped = False

    async def prepare(self) -> None:
        raise self._failure

    async def start(self, run_stage: RunStage) -> Guest:
        raise AssertionError

    async def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize("reason", [EMULATES, BrokerLostError("the broker has ended")], ids=["kvm", "lost"])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_a_sandbox_ends_with_the_first_line_as_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str | Exception
) -> None:
    async def do_nothing() -> None:
        pass

    async def make_boot(chosen: Configuration) -> GuestBoot:
        return guest

    monkeypatch.setattr("kata_runtime.pod.sealing.get_ready", do_nothing)
    identity = SandboxIdentity("/run/containerd/containerd.sock", "default", "pod")
    chosen, guest = configuration(tmp_path, "qemu"), FailingGuest(error)
    broker = cast("Broker", ProbingBroker(reason))
    boot = Boot(identity, broker, {"linux": {"namespaces": [{"type": "network"}]}}, inherited=0)
    await boot.prepare(chosen, make_boot)
    expected = HostUnfitError if reason == EMULATES else type(error)
    with pytest.raises(expected) as caught:
        await boot.run(chosen, lambda: None)
    assert str(caught.value).startswith("cannot run a guest with KVM: ") == (reason == EMULATES)
    assert guest.stopped
