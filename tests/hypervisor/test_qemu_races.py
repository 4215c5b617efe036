"""The driver against children that die, hang and lie, at every point of a start and after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fake_qemu import (
    CONFINED,
    OURS,
    UNCONFINED,
    FakeChild,
    FakeHost,
    FakeQemu,
    cannot_start,
    end_with,
    settle,
)
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor import vhost_vsock
from kata_hypervisor.contract import SharedDirectory, VmSpec
from kata_hypervisor.errors import ConfinementError, HypervisorError, LaunchError, SealError
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.qemu import qmp_control
from kata_hypervisor.qemu.command import AGENT, CONSOLE
from kata_hypervisor.qemu.driver import Qemu
from kata_hypervisor.seccomp.confinement import ThreadConfinement
from machines import start


def event(reason: str) -> bytes:
    return (
        b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "%s"}, "timestamp": {}}\n' % reason.encode()
    )


class Rig:
    """A driver, its host and its machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = FakeHost(qemu=FakeQemu(), virtiofsd=settle)
        self.settings: dict[str, Any] = {"accelerator": "tcg", "path": "/bin/true"}
        self.budgets = {"start_budget": 20.0, "stop_budget": 20.0}
        for name in ("kernel", "virtiofsd", "shared"):
            (directory / name).write_bytes(b"announce_submounts")

    def driver(self) -> Qemu:
        table = QemuHypervisor(
            kernel=self.directory / "kernel", virtio_fs_daemon=self.directory / "virtiofsd", **self.settings
        )
        return Qemu(table, self.host, **self.budgets)

    @property
    def spec(self) -> VmSpec:
        return VmSpec(
            sandbox_id="pod",
            directory=self.directory,
            vcpus=1,
            memory_mib=128,
            kernel=self.directory / "kernel",
            shared=SharedDirectory(self.directory / "shared"),
        )

    def assert_nothing_left(self) -> None:
        assert all(child.exited for child in self.host.children.values())
        assert {path.name for path in self.directory.iterdir()} == {"kernel", "virtiofsd", "shared"}


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A rig whose descriptors, children and files are counted at the end."""
    monkeypatch.setattr(vhost_vsock, "open_device", lambda: None)
    monkeypatch.setattr(qmp_control, "inherited_filters", lambda: 0)
    before = os.listdir("/proc/self/fd")
    rig = Rig(tmp_path)
    yield rig
    rig.assert_nothing_left()
    await rig.host.aclose()
    await asyncio.sleep(0)
    assert os.listdir("/proc/self/fd") == before


def asked(host: FakeHost, command: str) -> bool:
    """Whether QEMU's monitor has received this command."""
    return "qemu" in host.children and command in host.children["qemu"].commands


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Qemu]:
    machine = rig.driver()
    await start(machine, rig.spec)
    try:
        yield machine
    finally:
        await machine.stop()


async def refused(rig: Rig, error: type[HypervisorError] = LaunchError) -> Any:
    """Start, expect the error, and return it."""
    machine = rig.driver()
    with pytest.raises(error) as caught:
        await start(machine, rig.spec)
    rig.assert_nothing_left()
    return caught.value


async def test_a_start_proves_before_the_cpus_run_and_a_stop_ends_all(rig: Rig) -> None:
    async with running(rig) as machine:
        assert rig.host.children["qemu"].commands == ["qmp_capabilities", "cont"]
        assert [(process.role, process.child.name) for process in machine.processes] == [
            ("vmm", "qemu"),
            ("virtiofsd", "virtiofsd"),
        ]
        assert machine.warnings == ()
        assert "-S" in rig.host.argv["qemu"]
        await machine.stop()
        end = await machine.wait()
    assert end.requested
    assert end.reason == "qemu was stopped through its monitor" or end.status == ExitStatus(code=0)


async def test_pause_and_resume_are_the_monitors_stop_and_cont(rig: Rig) -> None:
    async with running(rig) as machine:
        await machine.pause()
        await machine.resume()
        assert rig.host.children["qemu"].commands[-2:] == ["stop", "cont"]


async def test_what_the_guest_prints_is_the_console_tail(rig: Rig) -> None:
    async with running(rig) as machine:
        os.write(rig.host.children["qemu"].fds[CONSOLE], b"hello\r\n\x1b[2Jworld\n")
        await rig.host.until(lambda _: "world" in machine.console_tail)
        assert machine.console_tail == "hello\n\ufffd[2Jworld"


async def test_the_transport_is_the_serial_port_where_there_is_no_vsock(rig: Rig) -> None:
    async with running(rig) as machine:
        assert type(machine.transport).__name__ == "SerialTransport"
        assert AGENT in rig.host.children["qemu"].fds
        assert any("virtserialport" in argument for argument in rig.host.argv["qemu"])


async def test_the_transport_is_vsock_where_the_host_has_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_vsock, "open_device", lambda: (os.open(os.devnull, os.O_RDWR), 77))
    async with running(rig) as machine:
        assert type(machine.transport).__name__ == "VsockTransport"
        assert "vhost-vsock-pci,vhostfd=5,guest-cid=77" in rig.host.argv["qemu"]


async def test_qemu_that_ends_at_once_is_named_with_its_last_word(rig: Rig) -> None:
    rig.host.behaviours["qemu"] = end_with(1, stderr=b"first\nqemu: Property '.foo' not found\n")
    error = await refused(rig)
    assert (
        str(error) == "qemu exited with status 1 before the guest was ready: qemu: Property '.foo' not found"
    )
    assert error.diagnostics["qemu stderr"] == "first\nqemu: Property '.foo' not found"


async def test_qemu_stopped_by_its_own_filter_is_said_so(rig: Rig) -> None:
    rig.host.behaviours["qemu"] = end_with(number=signal.SIGSYS)
    error = await refused(rig)
    assert str(error).startswith(
        "qemu was killed by SIGSYS before the guest was ready (its own filter, seccompsandbox"
    )


@pytest.mark.parametrize("command", ["qmp_capabilities", "cont"])
@pytest.mark.parametrize("status", [ExitStatus(code=0), ExitStatus(code=3), ExitStatus(signal=9)], ids=str)
async def test_qemu_that_ends_during_the_start_is_named(rig: Rig, command: str, status: ExitStatus) -> None:
    rig.host.behaviours["qemu"] = FakeQemu(
        end_at={command: lambda child: child.end(code=status.code, number=status.signal)}
    )
    how = f"exited with status {status.code}" if status.signal is None else f"was {status}"
    assert str(await refused(rig)).startswith(f"qemu {how} before the guest was ready")


async def test_qemu_that_ends_while_its_threads_are_read_is_named(rig: Rig) -> None:
    rig.host.threads = ProcessLookupError("no process 10")
    rig.host.behaviours["qemu"] = FakeQemu()
    starting = asyncio.ensure_future(refused(rig))
    await rig.host.until(lambda host: asked(host, "qmp_capabilities"))
    rig.host.children["qemu"].end(code=7)
    assert "exited with status 7" in str(await starting)


@pytest.mark.parametrize("command", ["qmp_capabilities", "cont"])
async def test_virtiofsd_that_ends_during_the_start_is_named(rig: Rig, command: str) -> None:
    def fail(_: FakeChild) -> None:
        rig.host.children["virtiofsd"].end(code=1, stderr=b"no space\n")

    rig.host.behaviours["qemu"] = FakeQemu(end_at={command: fail})
    assert str(await refused(rig)) == "virtiofsd exited with status 1 before the guest was ready: no space"
    assert rig.host.children["qemu"].exited == ExitStatus(signal=signal.SIGKILL)


async def test_virtiofsd_that_fails_and_takes_qemu_with_it_is_the_one_named(rig: Rig) -> None:
    rig.host.behaviours |= {"virtiofsd": end_with(1, stderr=b"no such directory\n"), "qemu": end_with(1)}
    assert str(await refused(rig)).startswith(
        "virtiofsd exited with status 1 before the guest was ready: no such"
    )


async def test_virtiofsd_that_ends_well_because_qemu_failed_is_not_named(rig: Rig) -> None:
    rig.host.behaviours |= {"virtiofsd": end_with(0), "qemu": end_with(1, stderr=b"broken\n")}
    assert str(await refused(rig)) == "qemu exited with status 1 before the guest was ready: broken"


async def test_a_program_that_is_not_there(rig: Rig) -> None:
    rig.host.behaviours["qemu"] = cannot_start("qemu")
    assert str(await refused(rig)) == "cannot start qemu: No such file or directory"


@pytest.mark.parametrize(
    ("behaviour", "stage"),
    [
        (FakeQemu(greeting=b""), "waiting for qemu's monitor"),
        (FakeQemu(silent_at="qmp_capabilities"), "waiting for qemu's monitor"),
        (FakeQemu(silent_at="cont"), "starting the virtual CPUs"),
    ],
)
async def test_a_silent_monitor_meets_a_deadline_that_names_the_stage(
    rig: Rig, behaviour: FakeQemu, stage: str
) -> None:
    rig.host.behaviours["qemu"] = behaviour
    rig.budgets = {"start_budget": 0.05, "stop_budget": 0.05}
    assert str(await refused(rig)) == f"qemu failed to start: {stage}: no answer within 0.05 s"


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH\n", b"{}\n", b'{"QMP": 3}\n', b"[" * 100_000 + b"\n"])
async def test_a_monitor_that_speaks_something_else(rig: Rig, greeting: bytes) -> None:
    rig.host.behaviours["qemu"] = FakeQemu(greeting=greeting)
    error = await refused(rig)
    assert "waiting for qemu's monitor: qemu's monitor sent no usable greeting" in str(error)


async def test_one_thread_without_a_filter_and_the_guest_never_runs(rig: Rig) -> None:
    rig.host.threads = [*CONFINED, ThreadConfinement(12, "worker", 0, 0, False)]
    error = await refused(rig, ConfinementError)
    assert "the kernel reports seccomp mode 0 for thread 12 (worker) of qemu; seccompsandbox = " in str(error)
    assert "requires mode 2" in str(error)
    assert "cont" not in rig.host.children["qemu"].commands


async def test_inherited_filters_are_no_proof(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp_control, "inherited_filters", lambda: 1)
    await refused(rig, ConfinementError)


async def test_qemus_own_filter_is_needed_above_ours(rig: Rig) -> None:
    """A QEMU that ignores -sandbox has the filter that we put on it, and no other."""
    rig.host.threads = [ThreadConfinement(10, "qemu", 2, OURS, True)]
    error = await refused(rig, ConfinementError)
    assert f"the kernel reports {OURS} seccomp filters for thread 10 (qemu) of qemu" in str(error)
    assert f"requires more than {OURS}" in str(error)
    assert "cont" not in rig.host.children["qemu"].commands


async def test_a_filter_that_allows_everything_is_no_proof(rig: Rig) -> None:
    rig.host.effective = False
    error = await refused(rig, ConfinementError)
    assert "the filter of thread 10 (qemu) of qemu allows every system call; seccompsandbox = " in str(error)
    assert "cont" not in rig.host.children["qemu"].commands


async def test_filters_that_cannot_be_read_back_are_a_warning(rig: Rig) -> None:
    rig.host.effective = SealError("no capability")
    async with running(rig) as machine:
        (warning,) = machine.warnings
        assert warning == "cannot read the content of qemu's filters, only their number: no capability"


async def test_loading_has_ended_before_the_guest_runs(rig: Rig) -> None:
    async with running(rig):
        assert not rig.host.children["qemu"].loading


async def test_a_call_that_our_filter_refuses_is_the_reason(rig: Rig) -> None:
    async with running(rig) as machine:
        qemu = rig.host.children["qemu"]
        qemu.violation = "seccomp: qemu called mount"
        qemu.end(number=9)
        assert (await machine.wait()).reason == "seccomp: qemu called mount"


async def test_no_threads_are_no_proof(rig: Rig) -> None:
    rig.host.threads = []
    assert "the kernel lists no thread" in str(await refused(rig, ConfinementError))


@pytest.mark.parametrize("value", ["", "off"])
async def test_unconfined_as_configured_runs_with_a_warning(rig: Rig, value: str) -> None:
    rig.settings["seccompsandbox"] = value
    rig.host.threads = UNCONFINED
    async with running(rig) as machine:
        (warning,) = machine.warnings
        assert "qemu runs unconfined" in warning
        assert "-sandbox" not in rig.host.argv["qemu"]


async def test_a_filter_that_nobody_configured_is_refused(rig: Rig) -> None:
    rig.settings["seccompsandbox"] = "off"
    await refused(rig, ConfinementError)


async def test_prove_reads_again(rig: Rig) -> None:
    async with running(rig) as machine:
        await machine.verify_confinement()
        rig.host.threads = UNCONFINED
        with pytest.raises(ConfinementError, match="the kernel reports seccomp mode 0"):
            await machine.verify_confinement()


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("qemu", ExitStatus(signal=11), "qemu was killed by SIGSEGV"),
        (
            "qemu",
            ExitStatus(signal=9),
            "qemu was killed by SIGKILL (if nobody sent the signal, the kernel's",
        ),
        ("virtiofsd", ExitStatus(signal=9), "virtiofsd was killed by SIGKILL"),
        ("virtiofsd", ExitStatus(code=1), "virtiofsd exited with status 1"),
    ],
)
async def test_either_death_ends_the_machine(rig: Rig, name: str, status: ExitStatus, reason: str) -> None:
    async with running(rig) as machine:
        rig.host.children[name].end(code=status.code, number=status.signal)
        end = await machine.wait()
        rig.assert_nothing_left()
        assert end.reason.startswith(reason)
        assert (end.process, end.status, end.requested) == (name, status, False)
        with pytest.raises(HypervisorError, match=reason.partition("(")[0]):
            await machine.pause()


@pytest.mark.parametrize(
    ("shutdown", "console", "reason"),
    [
        ("guest-shutdown", b"", "the guest shut down"),
        ("guest-reset", b"", "the guest reset itself"),
        (
            "guest-reset",
            b"[ 1.2] Kernel panic - not syncing: No init\n",
            "the guest's kernel panicked: not syncing: No init",
        ),
        ("new-reason", b"", "qemu shut down: new-reason"),
    ],
)
async def test_the_guests_own_end_is_told(rig: Rig, shutdown: str, console: bytes, reason: str) -> None:
    rig.host.behaviours["qemu"] = FakeQemu(events={"stop": event(shutdown) + event("host-error")})
    async with running(rig) as machine:
        qemu = rig.host.children["qemu"]
        os.write(qemu.fds[CONSOLE], console or b"\n")
        await machine.pause()
        qemu.end(code=0)
        assert (await machine.wait()).reason == reason


async def test_qemu_that_does_not_quit_is_killed(rig: Rig) -> None:
    rig.host.behaviours["qemu"] = FakeQemu(silent_at="quit")
    rig.budgets["stop_budget"] = 0.05
    async with running(rig) as machine:
        await machine.stop()
        assert (await machine.wait()).status == ExitStatus(signal=signal.SIGKILL)


async def test_stop_is_idempotent_before_during_and_after(rig: Rig) -> None:
    machine = rig.driver()
    await machine.stop()
    with pytest.raises(LaunchError, match="used before"):
        await start(machine, rig.spec)
    async with running(rig) as machine:
        await asyncio.gather(machine.stop(), machine.stop())
        await machine.stop()


async def test_a_machine_starts_once(rig: Rig) -> None:
    async with running(rig) as machine:
        with pytest.raises(LaunchError, match="used before"):
            await start(machine, rig.spec)
        await machine.resume()


async def test_nothing_can_be_asked_of_a_machine_that_was_not_started(rig: Rig) -> None:
    machine = rig.driver()
    for question in (machine.wait, machine.pause, machine.resume, machine.verify_confinement):
        with pytest.raises(HypervisorError):
            await question()
    with pytest.raises(HypervisorError):
        _ = machine.transport
    assert (machine.processes, machine.console_tail) == ((), "")


@pytest.mark.parametrize(
    "reached",
    [
        lambda host: "virtiofsd" in host.children,
        lambda host: "qemu" in host.children,
        lambda host: asked(host, "qmp_capabilities"),
        lambda host: asked(host, "cont"),
    ],
    ids=["virtiofsd", "qemu", "handshake", "cont"],
)
@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_a_start_that_is_given_up_leaves_nothing(
    rig: Rig, reached: Callable[[FakeHost], bool], how: str
) -> None:
    rig.host.behaviours["qemu"] = FakeQemu(silent_at="cont")
    rig.budgets["stop_budget"] = 0.05
    machine = rig.driver()
    starting = asyncio.ensure_future(start(machine, rig.spec))
    await rig.host.until(reached)
    if how == "cancelled":
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    else:
        await machine.stop()
        with pytest.raises(LaunchError):
            await starting


async def test_waiting_may_be_cancelled_without_harm(rig: Rig) -> None:
    async with running(rig) as machine:
        waiting = asyncio.ensure_future(machine.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await machine.pause()
