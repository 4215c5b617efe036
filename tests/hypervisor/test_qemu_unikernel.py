"""A unikernel's QEMU: its command line, its confinement, and children that do not do as they should."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_qemu import CONFINED, UNCONFINED, Behaviour, FakeHost, FakeQemu, cannot_start, end_with, settle
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.sandbox_option import DENY_ALL
from kata_hypervisor.contract import BlockFile, NetTap, UnikernelSpec
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    LaunchError,
    NotSupportedError,
    UnikernelError,
)
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.qemu import preflight, qmp_control
from kata_hypervisor.qemu.unikernel import QemuUnikernel
from kata_hypervisor.qemu.unikernel_command import command_line, descriptors
from tiny_guest import SPIN, kernel

COMMON = [
    *("/usr/bin/qemu-system-x86_64", "-name", "sandbox-pod,debug-threads=on"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-S"),
    *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    *("-object", "memory-backend-memfd,id=memory,size=64M,share=on,seal=on"),
]
KVM = [
    *("-machine", "q35,memory-backend=memory,usb=off,vmport=off,smbus=off,sata=off,dump-guest-core=off"),
    *("-accel", "kvm", "-cpu", "host,-vmx,-svm", "-smp", "cpus=1", "-m", "64M"),
]
CHANNELS = [
    *("-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control"),
    *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-device", "isa-debug-exit"),
]


def table(**settings: Any) -> QemuHypervisor:
    return QemuHypervisor(**{"kernel": "/bin/true", **settings})


@pytest.fixture
async def spec(tmp_path: Path) -> AsyncIterator[UnikernelSpec]:
    """A unikernel that QEMU starts; nothing stays open behind it."""
    before = sorted(os.listdir("/proc/self/fd"))
    (tmp_path / "app").write_bytes(kernel(SPIN, pvh=True))
    file = os.open(tmp_path / "app", os.O_RDONLY)
    output, theirs = socket.socketpair()
    yield UnikernelSpec("pod", tmp_path, 64, "/app", file, theirs.fileno(), "two words")
    output.close()
    theirs.close()
    os.close(file)
    await asyncio.sleep(0)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- the command line --------------------------------------------------------------------------------------


async def test_the_least_command_line(spec: UnikernelSpec) -> None:
    kernel = ["-kernel", "/proc/self/fd/4", "-append", "two words"]
    assert command_line(table(), spec) == [*COMMON, *KVM, *kernel, *CHANNELS]
    assert descriptors(spec) == {1: spec.output, 4: spec.file}


async def test_a_command_line_with_everything(spec: UnikernelSpec) -> None:
    whole = replace(
        spec,
        command_line="-S, no option",
        initrd=spec.file,
        block=BlockFile(spec.file, read_only=True),
        net=NetTap(spec.file, bytes.fromhex("020000000001"), 1400),
    )
    settings = {"accelerator": "tcg", "machine_type": "pc", "default_vcpus": 2, "cpu_features": "pmu=off"}
    machine = [
        *("-machine", "pc,memory-backend=memory,usb=off,vmport=off,smbus=off,sata=off,dump-guest-core=off"),
        *(
            "-accel",
            "tcg,thread=multi,tb-size=128",
            "-cpu",
            "max,-svm,min-xlevel=0x80000008,pmu=off",
            "-smp",
            "cpus=2",
            "-m",
            "64M",
        ),
        *("-kernel", "/proc/self/fd/4", "-initrd", "/proc/self/fd/5", "-append", "-S, no option"),
    ]
    file = "file.driver=file,file.filename=/dev/fdset/6,file.locking=off"
    block = f"driver=raw,node-name=block,read-only=on,{file}"
    devices = [
        *("-add-fd", "fd=6,set=6", "-blockdev", block, "-device", "virtio-blk-pci,drive=block"),
        *("-netdev", "tap,id=net,fd=7"),
        *("-device", "virtio-net-pci,netdev=net,mac=02:00:00:00:00:01,host_mtu=1400"),
    ]
    assert command_line(table(**settings), whole) == [*COMMON, *machine, *CHANNELS, *devices]
    assert sorted(descriptors(whole)) == [1, 4, 5, 6, 7]


# -- confinement -------------------------------------------------------------------------------------------


class Rig:
    """Monitors on a host without processes. qemu: what QEMU does."""

    def __init__(self) -> None:
        self.host = FakeHost(qemu=FakeQemu())

    def behave(self, behaviour: Behaviour | Exception) -> None:
        self.host.behaviours["qemu"] = behaviour

    def monitor(self, **settings: Any) -> QemuUnikernel:
        given = table(**{"accelerator": "tcg", "path": "/bin/true", **settings})
        return QemuUnikernel(given, self.host, start_budget=20.0, stop_budget=20.0)


@pytest.fixture
async def rig(spec: UnikernelSpec, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A rig whose children are counted at the end."""
    monkeypatch.setattr(qmp_control, "inherited_filters", lambda: 0)
    monkeypatch.setattr(preflight, "check_guest_memory", lambda *_, **__: [])
    rig = Rig()
    yield rig
    assert all(child.exited for child in rig.host.children.values())
    await rig.host.aclose()


OFF = 'seccompsandbox = "off" in [hypervisor.qemu] does not apply to unikernels: '
FREE = "qemu runs unconfined: honor_unconfined = true in [hypervisor.qemu] turns its seccomp filter off"


@pytest.mark.parametrize(
    ("settings", "unconfined", "sandbox", "warnings"),
    [
        ({}, False, DENY_ALL, ()),
        ({}, True, DENY_ALL, ()),
        ({"honor_unconfined": True}, False, DENY_ALL, ()),
        ({"honor_unconfined": True}, True, None, (FREE,)),
        ({"seccompsandbox": ",".join(["on", *DENY_ALL.split(",")[:0:-1]])}, False, DENY_ALL, ()),
        (
            {"seccompsandbox": "off"},
            True,
            DENY_ALL,
            (OFF + "their qemu is denied all four groups of system calls",),
        ),
    ],
)
async def test_all_four_groups_are_denied_but_where_unconfined_is_honored(
    rig: Rig,
    spec: UnikernelSpec,
    settings: dict[str, Any],
    unconfined: bool,
    sandbox: str | None,
    warnings: tuple[str, ...],
) -> None:
    rig.host.threads = CONFINED if sandbox else UNCONFINED
    monitor = rig.monitor(**settings)
    await monitor.prepare(replace(spec, unconfined=unconfined))
    argv = list(rig.host.argv["qemu"])
    assert (argv[argv.index("-sandbox") + 1] if "-sandbox" in argv else None) == sandbox
    assert monitor.warnings == warnings
    await monitor.stop()


@pytest.mark.parametrize("settings", [{}, {"seccompsandbox": "off"}])
async def test_one_that_ignores_its_option_never_runs(
    rig: Rig, spec: UnikernelSpec, settings: dict[str, Any]
) -> None:
    rig.host.threads = UNCONFINED
    monitor = rig.monitor(**settings)
    with pytest.raises(
        ConfinementError,
        match=r'mode 0 for thread 10 \(qemu\) of qemu; seccompsandbox = "on,obs.*" requires mode 2',
    ):
        await monitor.prepare(spec)
    assert "cont" not in rig.host.children["qemu"].commands
    with pytest.raises(LaunchError):
        await monitor.run()


# -- children that do not do as they should ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (cannot_start("qemu"), "cannot start qemu: No such file"),
        (
            end_with(1, stderr=b"no such machine\n"),
            "qemu exited with status 1 before the guest was ready: no such",
        ),
        (end_with(0), "qemu exited with status 0 before the guest was ready, and wrote nothing to stderr"),
        (end_with(number=31), "killed by SIGSYS .*its own filter, seccompsandbox"),
        (FakeQemu(greeting=b"SSH-2.0\n"), "waiting for qemu's monitor: .*no usable greeting"),
    ],
)
async def test_one_that_does_not_start(
    rig: Rig, spec: UnikernelSpec, behaviour: Behaviour | Exception, message: str
) -> None:
    rig.behave(behaviour)
    monitor = rig.monitor()
    with pytest.raises(LaunchError, match=message):
        await monitor.prepare(spec)
    await monitor.stop()


async def test_one_that_hangs(rig: Rig, spec: UnikernelSpec) -> None:
    rig.behave(settle)
    monitor = rig.monitor()
    monitor._start_budget = 0.05
    with pytest.raises(LaunchError, match=r"waiting for qemu's monitor: no answer within 0\.05 s"):
        await monitor.prepare(spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "/nonexistent/qemu"}, "/nonexistent/qemu is not an executable file"),
        ({"path": "/etc/passwd"}, "/etc/passwd is not an executable file"),
    ],
)
async def test_a_program_that_cannot_run(
    rig: Rig, spec: UnikernelSpec, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(HostUnfitError, match=message):
        await rig.monitor(**settings).prepare(spec)
    assert rig.host.children == {}


@pytest.mark.parametrize(("code", "ending"), [(0, "exited with status 0"), (7, "exited with status 7")])
async def test_one_that_ends_before_it_is_said_to_run(
    rig: Rig, spec: UnikernelSpec, code: int, ending: str
) -> None:
    rig.behave(FakeQemu(end_at={"cont": lambda child: child.end(code=code)}))
    monitor = rig.monitor()
    await monitor.prepare(spec)
    await monitor.run()
    end = await monitor.wait()
    assert (end.status, end.requested, end.reason) == (ExitStatus(code=code), False, f"qemu {ending}")


async def test_one_that_crashes_when_it_shall_run(rig: Rig, spec: UnikernelSpec) -> None:
    rig.behave(FakeQemu(end_at={"cont": lambda child: child.end(number=11)}))
    monitor = rig.monitor()
    await monitor.prepare(spec)
    with pytest.raises(LaunchError, match="qemu was killed by SIGSEGV"):
        await monitor.run()


STOPPED = b'{"event": "STOP", "timestamp": {}}\n'


async def test_one_that_cannot_go_on_is_ended(rig: Rig, spec: UnikernelSpec) -> None:
    rig.behave(FakeQemu(events={"cont": STOPPED}, answers={"query-status": {"status": "internal-error"}}))
    monitor = rig.monitor()
    await monitor.prepare(spec)
    await monitor.run()
    end = await monitor.wait()
    assert (end.status, end.requested) == (ExitStatus(signal=6), False)
    assert end.reason == "the unikernel crashed: qemu reports internal-error"


async def test_one_that_is_paused_is_not_ended(rig: Rig, spec: UnikernelSpec) -> None:
    rig.behave(FakeQemu(events={"stop": STOPPED}, answers={"query-status": {"status": "paused"}}))
    monitor = rig.monitor()
    await monitor.prepare(spec)
    await monitor.run()
    await monitor.pause()
    await rig.host.until(lambda host: "query-status" in host.children["qemu"].commands)
    await monitor.resume()
    await monitor.stop()
    assert (await monitor.wait()).requested


async def test_one_that_does_not_answer_is_killed(rig: Rig, spec: UnikernelSpec) -> None:
    rig.behave(FakeQemu(silent_at="quit"))
    monitor = rig.monitor()
    monitor._stop_budget = 0.01
    await monitor.prepare(spec)
    await monitor.run()
    await monitor.stop()
    end = await monitor.wait()
    assert (end.status, end.requested) == (ExitStatus(signal=9), True)
    with pytest.raises(HypervisorError, match="cannot pause the virtual machine: "):
        await monitor.pause()


async def test_a_start_that_is_cancelled_leaves_nothing(rig: Rig, spec: UnikernelSpec) -> None:
    rig.behave(settle)
    preparing = asyncio.ensure_future(rig.monitor().prepare(spec))
    await rig.host.until(lambda host: "qemu" in host.children)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing


# -- what is not for it ------------------------------------------------------------------------------------


async def test_what_linux_does_not_read_is_refused(rig: Rig, spec: UnikernelSpec) -> None:
    content = bytearray(1024)
    content[0x1FE:0x206] = b"\x55\xaa\0\0HdrS"
    linux = os.memfd_create("linux")
    os.write(linux, content)
    whole = replace(spec, file=linux, command_line="x" * 2048)
    with pytest.raises(UnikernelError, match="its command line has 2048 bytes, and Linux reads 2047"):
        await rig.monitor().prepare(whole)
    os.close(linux)
    assert rig.host.children == {}


async def test_what_is_larger_than_its_memory_is_refused(rig: Rig, spec: UnikernelSpec) -> None:
    initrd = os.memfd_create("initrd")
    os.truncate(initrd, 64 << 20)
    with pytest.raises(
        UnikernelError, match="/app: its file and initrd have 65 MiB, its memory 64 MiB: raise"
    ):
        await rig.monitor().prepare(replace(spec, initrd=initrd))
    os.close(initrd)
    assert rig.host.children == {}


async def test_a_tap_by_its_name_is_refused(rig: Rig, spec: UnikernelSpec) -> None:
    with pytest.raises(NotSupportedError, match="the unikernel of pod: qemu cannot open a tap by its name"):
        await rig.monitor().prepare(replace(spec, net=NetTap(-1, bytes(6), name="tap0")))
