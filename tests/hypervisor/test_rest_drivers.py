"""The drivers of Cloud Hypervisor and Firecracker against programs that do not start, hang, lie and die."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_hypervisor import host_checks
from kata_hypervisor.contract import Disk, MachineSize, SharedDirectory, Tap
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    LaunchError,
    NotSupportedError,
)
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.rest_machine import RestMachine
from rest_rig import KINDS, RestRig

NAMES = tuple(KINDS)
FIRST = {"clh": "/api/v1/vmm.ping", "firecracker": "/version"}
DESCRIBE = {"clh": "/api/v1/vm.create", "firecracker": "/machine-config"}
BOOT = {"clh": "/api/v1/vm.boot", "firecracker": "/actions"}
PAUSE = {"clh": "/api/v1/vm.pause", "firecracker": "/vm"}

Make = Callable[..., RestRig]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes a rig, once; descriptors, children and files are counted at the end."""
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    before = len(os.listdir("/proc/self/fd"))
    rigs: list[RestRig] = []

    def make(name: str, mode: str = "") -> RestRig:
        rigs.append(RestRig(tmp_path, name, mode))
        return rigs[0]

    yield make
    rigs[0].assert_nothing_left()
    await rigs[0].host.aclose()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


async def refused(rig: RestRig, error: type[HypervisorError] = LaunchError, **settings: object) -> str:
    """Start, expect the error, and return what it says."""
    machine = rig.machine(**settings)

    async def start() -> None:
        await machine.prepare(rig.spec)
        await machine.run()

    with pytest.raises(error) as caught:
        await start()
    rig.assert_nothing_left()
    return str(caught.value)


async def started(rig: RestRig, **settings: object) -> RestMachine:
    machine = rig.machine(**settings)
    await machine.prepare(rig.spec)
    await machine.run()
    return machine


# -- the filter's switch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("disabled", [False, True])
async def test_the_switch_on_cloud_hypervisors_command_line(make: Make, disabled: bool) -> None:
    rig = make("clh")
    await (await started(rig, disable_seccomp=disabled)).stop()
    seccomp = "false" if disabled else "true"
    assert rig.program.arguments == [
        *("--api-socket", "fd=3", "--event-monitor", "fd=5", "--seccomp", seccomp),
    ]


@pytest.mark.parametrize("disabled", [False, True])
async def test_the_switch_on_firecrackers_command_line(make: Make, disabled: bool) -> None:
    rig = make("firecracker")
    await (await started(rig, disable_seccomp=disabled)).stop()
    socket_path = str(rig.directory / "vmm/firecracker.sock")
    assert rig.program.arguments == [
        *("--id", "pod-1", "--api-sock", socket_path, "--level", "Warning"),
        *(("--no-seccomp",) if disabled else ()),
    ]


@pytest.mark.parametrize("name", NAMES)
async def test_a_program_that_ignores_its_flag_is_given_no_machine(make: Make, name: str) -> None:
    rig = make(name, "unfiltered")
    message = await refused(rig, ConfinementError)
    assert f" of {KINDS[name]}; disable_seccomp = false in [hypervisor.{name}] requires " in message
    # The main thread of Cloud Hypervisor starts the others, and is under a filter of ours.
    reported = {"clh": "1 seccomp filters for thread", "firecracker": "seccomp mode 0 for thread"}[name]
    assert f"the kernel reports {reported}" in message
    # Nothing was described to it, nothing booted.
    assert rig.program.requests in (
        [("GET", FIRST[name])],
        [("GET", FIRST[name]), ("PUT", "/api/v1/vmm.shutdown")],
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="reading filters back needs root")
@pytest.mark.parametrize("name", NAMES)
async def test_filters_that_forbid_nothing_are_none(make: Make, name: str) -> None:
    rig = make(name, "toothless")
    message = await refused(rig, ConfinementError)
    assert "allows every system call; disable_seccomp = false" in message
    assert ("PUT", DESCRIBE[name]) not in rig.program.requests


@pytest.mark.parametrize("name", NAMES)
async def test_a_virtual_cpu_without_a_filter_ends_the_machine(make: Make, name: str) -> None:
    message = await refused(make(name, "leaky"), ConfinementError)
    assert "vcpu" in message
    assert "the kernel reports seccomp mode 0" in message or "the kernel reports 1 seccomp filters" in message


async def test_a_virtual_cpu_with_the_filter_of_its_parent_only_ends_the_machine(make: Make) -> None:
    """Cloud Hypervisor's vCPU threads are born under one filter, and are to put on a second."""
    rig = make("clh", "thin")
    message = await refused(rig, ConfinementError)
    assert "the kernel reports 2 seccomp filters for thread" in message
    assert "(vcpu0)" in message
    assert "requires more than 2" in message


@pytest.mark.parametrize("name", NAMES)
async def test_without_a_filter_as_configured_there_is_a_warning(make: Make, name: str) -> None:
    machine = await started(make(name), disable_seccomp=True)
    await machine.verify_confinement()
    assert any("runs unconfined: disable_seccomp = true" in warning for warning in machine.warnings)
    await machine.stop()


@pytest.mark.parametrize("name", NAMES)
async def test_a_filter_that_nobody_configured_is_refused(make: Make, name: str) -> None:
    message = await refused(make(name, "sealed"), ConfinementError, disable_seccomp=True)
    assert "requires mode 0" in message


@pytest.mark.parametrize("way", ["execve", "ptrace", "fork"])
async def test_cloud_hypervisors_main_thread_does_not_leave_its_process(make: Make, way: str) -> None:
    message = await refused(make("clh", f"escape:{way}"))
    call = {"fork": "(clone|fork|vfork)"}.get(way, way)
    stage = "(while it was loading|when it had loaded)"
    assert re.match(rf"seccomp: cloud-hypervisor called {call} \(\d+\) {stage}, which policy", message)


# -- programs that are none ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "mode", "error", "expected"),
    [
        (None, 0, HostUnfitError, "is not an executable file"),
        (b"#!/bin/sh\n", 0o644, HostUnfitError, "is not an executable file"),
        (b"\x7fELF" + bytes(100), 0o755, LaunchError, "Exec format error"),
        (b"#!/bin/none\n", 0o755, LaunchError, "No such file or directory"),
    ],
    ids=["missing", "not executable", "wrong architecture", "no interpreter"],
)
async def test_a_program_that_cannot_run(
    make: Make, name: str, content: bytes | None, mode: int, error: type[HypervisorError], expected: str
) -> None:
    rig = make(name)
    rig.program.path.unlink()
    if content is not None:
        rig.program.path.write_bytes(content)
        rig.program.path.chmod(mode)
    message = await refused(rig, error)
    assert str(rig.program.path) in message
    assert expected in message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("exit:3", "exited with status 3 before the guest was ready: it is not my day"),
        ("silent", "exited with status 1 before the guest was ready, and wrote nothing to stderr"),
    ],
)
async def test_a_program_that_ends_at_once(make: Make, name: str, mode: str, expected: str) -> None:
    assert await refused(make(name, mode)) == f"{KINDS[name]} {expected}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["hang", "deaf"])
async def test_a_program_that_says_nothing_meets_the_deadline(make: Make, name: str, mode: str) -> None:
    rig = make(name, mode)
    rig.budgets = {"start_budget": 0.3, "stop_budget": 0.1}
    message = await refused(rig)
    assert message.startswith(f"{KINDS[name]} failed to start: ")
    assert "no answer within 0.3 s" in message


# -- answers that are none ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("paths", [FIRST, DESCRIBE, BOOT], ids=["first", "describe", "boot"])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("half", "gave no usable answer to"),
        ("garbage", "its answer is not HTTP"),
        ("close", "it closed the connection"),
        ("crash", "killed by SIGSEGV"),
    ],
)
async def test_a_start_that_fails_at_a_request(
    make: Make, name: str, paths: dict[str, str], how: str, expected: str
) -> None:
    rig = make(name, f"{how}:{paths[name]}")
    message = await refused(rig)
    assert expected in message
    asked = [path for _, path in rig.program.requests]
    assert asked.count(paths[name]) == (0 if how in ("close", "crash") else 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("paths", [FIRST, DESCRIBE, BOOT], ids=["first", "describe", "boot"])
async def test_a_refusal_is_told_in_the_vmms_words_and_not_asked_again(
    make: Make, name: str, paths: dict[str, str]
) -> None:
    rig = make(name, f"{paths[name]}=400")
    message = await refused(rig)
    assert f"{KINDS[name]} failed to start: " in message
    assert "with status 400: " in message
    assert "it does not want to" in message
    assert [path for _, path in rig.program.requests].count(paths[name]) == 1


@pytest.mark.parametrize("name", NAMES)
async def test_a_version_that_is_none_and_one_that_nobody_tested(make: Make, name: str) -> None:
    machine = await started(make(name, "version:9.9"))
    assert any("9.9 was not tested with this runtime; tested: " in warning for warning in machine.warnings)
    await machine.stop()


@pytest.mark.parametrize(("version", "boots"), [("1.16.1", False), ("1.17.0", True)])
async def test_a_firecracker_that_takes_no_bzimage_is_not_given_one(
    make: Make, version: str, boots: bool
) -> None:
    rig = make("firecracker", f"version:{version}")
    (rig.directory / "kernel").write_bytes(bytes(0x1FE) + b"\x55\xaa\xeb\x66HdrS")
    if boots:
        await (await started(rig)).stop()
        return
    message = await refused(rig, HostUnfitError)
    assert message.startswith("cannot boot the guest: firecracker 1.16.1 loads ELF kernels only, and ")
    assert (
        "install 1.17 or later, or name the ELF file, vmlinux, in kernel of [hypervisor.firecracker]"
        in message
    )
    assert ("PUT", DESCRIBE["firecracker"]) not in rig.program.requests


@pytest.mark.parametrize("name", NAMES)
async def test_a_pause_that_is_refused_says_why_and_the_machine_goes_on(make: Make, name: str) -> None:
    machine = await started(make(name, f"{PAUSE[name]}=405"))
    with pytest.raises(
        HypervisorError, match=r"cannot pause the virtual machine: .* with status 405: .*want to"
    ):
        await machine.pause()
    await machine.verify_confinement()
    await machine.stop()


@pytest.mark.parametrize("name", NAMES)
async def test_a_pause_at_which_the_vmm_dies_says_how(make: Make, name: str) -> None:
    machine = await started(make(name, f"crash:{PAUSE[name]}"))
    with pytest.raises(HypervisorError, match="cannot pause the virtual machine: "):
        await machine.pause()
    end = await machine.wait()
    assert (end.status, end.requested) == (ExitStatus(signal=signal.SIGSEGV), False)
    await machine.stop()


@pytest.mark.parametrize("name", NAMES)
async def test_a_pause_whose_caller_goes_away_does_not_break_the_connection(make: Make, name: str) -> None:
    machine = await started(make(name))
    pausing = asyncio.ensure_future(machine.pause())
    await asyncio.sleep(0)
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    await machine.resume()
    await machine.stop()


# -- the machine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_the_order_of_a_start(make: Make, name: str) -> None:
    rig = make(name)
    machine = rig.machine()
    spec = replace(rig.spec, disks=(Disk("data", rig.directory / "image"),), spare_disks=1)
    await machine.prepare(spec)
    prepared = list(rig.program.requests)
    await machine.run()
    await machine.stop()
    if name == "clh":
        assert prepared == [("GET", "/api/v1/vmm.ping"), ("PUT", "/api/v1/vm.create")]
    else:
        drives = ("drives/image", "drives/data", "drives/spare0")
        paths = ("boot-source", "machine-config", "cpu-config", *drives, "vsock", "entropy")
        assert prepared == [("GET", "/version"), *(("PUT", f"/{path}") for path in paths)]
    assert rig.program.requests[len(prepared)] == ("PUT", BOOT[name])


@pytest.mark.parametrize("hidden", [True, False])
async def test_virtualization_is_hidden_from_firecrackers_guest(make: Make, hidden: bool) -> None:
    rig = make("firecracker")
    await (await started(rig, disable_nested_virtualization=hidden)).stop()
    asked = [entry["body"] for entry in rig.program.record if entry.get("path") == "/cpu-config"]
    cleared = {
        (
            modifier["leaf"],
            modifier["subleaf"],
            one["register"],
            len(one["bitmap"]) - one["bitmap"].rindex("0") - 1,
        )
        for body in asked
        for modifier in body["cpuid_modifiers"]
        for one in modifier["modifiers"]
    }
    vmx, svm = ("0x1", "0x0", "ecx", 5), ("0x80000001", "0x0", "ecx", 2)
    assert cleared == ({vmx, svm} if hidden else set())


@pytest.mark.parametrize("name", NAMES)
async def test_the_guests_console_and_the_way_to_its_agent(make: Make, name: str) -> None:
    machine = await started(make(name))
    guest, number = await machine.transport.connect(1024)
    with guest:
        assert number == 1073741824
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(guest, b"echo")
        assert await loop.sock_recv(guest, 100) == b"echo"
    await machine.stop()
    assert machine.console_tail == "hello from the guest"


async def test_a_guest_that_resets_itself_ends_its_machine(make: Make) -> None:
    machine = await started(make("clh", "reboot"))
    await machine.pause()  # this stand-in tells of a reset at it
    end = await machine.wait()
    assert (end.reason, end.process, end.requested) == ("the guest reset itself", "cloud-hypervisor", False)
    await machine.stop()


async def test_virtiofsd_that_dies_ends_the_machine(make: Make) -> None:
    rig = make("clh")
    machine = await started(rig)
    await rig.host.children["virtiofsd"].kill()
    end = await machine.wait()
    assert (end.process, end.status) == ("virtiofsd", ExitStatus(signal=signal.SIGKILL))
    rig.assert_nothing_left()
    await machine.stop()


async def test_a_vmm_that_does_not_end_when_asked_is_killed(make: Make) -> None:
    rig = make("clh", "late:/api/v1/vmm.shutdown")
    rig.budgets["stop_budget"] = 0.1
    machine = await started(rig)
    await machine.stop()
    assert (await machine.wait()).status == ExitStatus(signal=signal.SIGKILL)


# -- what is in the way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_a_path_that_no_socket_can_have(make: Make, name: str, tmp_path: Path) -> None:
    rig = make(name)
    spec = replace(rig.spec, directory=tmp_path / ("d" * 108))
    with pytest.raises(HostUnfitError, match=r"has \d+ bytes, a unix socket's has at most 107"):
        await rig.machine().prepare(spec)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["kernel", "initrd", "image"])
async def test_a_file_of_the_guest_that_is_missing(make: Make, name: str, what: str) -> None:
    rig = make(name)
    changes: dict[str, Any] = {what: Path("/none")}
    with pytest.raises(HostUnfitError, match=f"cannot open the guest's .*{what}.*: /none: No such file"):
        await rig.machine().prepare(replace(rig.spec, **changes))


async def test_more_cpus_than_firecracker_has(make: Make) -> None:
    rig = make("firecracker")
    with pytest.raises(HostUnfitError, match="at most 32 vCPUs, 33 were asked for"):
        await rig.machine().prepare(replace(rig.spec, vcpus=33))


async def test_what_firecracker_cannot_do_it_refuses(make: Make) -> None:
    rig = make("firecracker")
    specs = (
        (replace(rig.spec, shared=SharedDirectory(rig.directory)), "share a directory"),
        (
            replace(rig.spec, taps=(Tap("n", "t", "02:00:00:00:00:01", fds=(0,)),)),
            "take a tap as descriptors",
        ),
    )
    for spec, expected in specs:
        with pytest.raises(NotSupportedError, match=expected):
            await rig.machine().prepare(spec)
    machine = await started(rig)
    with pytest.raises(NotSupportedError):
        await machine.resize(MachineSize(1, 512))
    await machine.stop()


# -- giving up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["cancelled", "stopped"])
@pytest.mark.parametrize("stage", ["spawn", "describe", "boot"])
async def test_a_start_that_is_given_up_leaves_nothing(make: Make, name: str, how: str, stage: str) -> None:
    paths = {"describe": DESCRIBE, "boot": BOOT}
    rig = make(name, f"late:{paths[stage][name]}" if stage in paths else "hang")
    rig.budgets["stop_budget"] = 0.1
    machine = rig.machine()

    async def start() -> None:
        await machine.prepare(rig.spec)
        await machine.run()

    starting = asyncio.ensure_future(start())
    while not rig.host.children.get(KINDS[name]):  # noqa: ASYNC110 - what is awaited has no event
        await asyncio.sleep(0.001)
    while stage == "boot" and ("PUT", DESCRIBE[name]) not in rig.program.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if how == "cancelled":
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    else:
        await machine.stop()
        with pytest.raises(LaunchError):
            await starting


@pytest.mark.parametrize("name", NAMES)
async def test_a_machine_is_used_once_and_in_order(make: Make, name: str) -> None:
    rig = make(name)
    machine = rig.machine()
    with pytest.raises(LaunchError, match="it is not prepared"):
        await machine.run()
    for question in (machine.wait, machine.pause, machine.resume, machine.verify_confinement):
        with pytest.raises(HypervisorError):
            await question()
    await machine.prepare(rig.spec)
    with pytest.raises(LaunchError, match="used before"):
        await machine.prepare(rig.spec)
    await machine.run()
    with pytest.raises(LaunchError, match="has run before"):
        await machine.run()
    await asyncio.gather(machine.stop(), machine.stop())
    await machine.stop()
    with pytest.raises(LaunchError, match="used before"):
        await machine.prepare(rig.spec)
