"""A unikernel's Firecracker: its command line, its requests, and stand-ins that do not do as they should."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import openapi
from kata_configuration.models.firecracker import Firecracker
from kata_hypervisor import host_checks
from kata_hypervisor.contract import BlockFile, NetTap, UnikernelSpec
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    LaunchError,
    NotSupportedError,
)
from kata_hypervisor.firecracker.machine import NOT_NESTED
from kata_hypervisor.firecracker.unikernel import FirecrackerUnikernel
from kata_hypervisor.host import ExitStatus
from local_host import LocalHost
from openapi import Description
from standin_program import StandInProgram
from tiny_guest import SPIN, kernel


@dataclass
class Rig:
    """A stand-in for Firecracker, and a unikernel to run in it."""

    directory: Path
    spec: UnikernelSpec
    output: socket.socket
    host: LocalHost
    program: StandInProgram

    def monitor(self, **settings: Any) -> FirecrackerUnikernel:
        table = Firecracker(**{"kernel": "/nonexistent", "path": self.program.path, **settings})
        return FirecrackerUnikernel(table, self.host, start_budget=20.0)


Make = Callable[..., Rig]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes a rig, once; descriptors, children and files are counted at the end."""
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    before = len(os.listdir("/proc/self/fd"))
    for name in ("bin", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "app").write_bytes(kernel(SPIN, pvh=True))
    file = os.open(tmp_path / "app", os.O_RDONLY)
    output, theirs = socket.socketpair()
    spec = UnikernelSpec("pod_1", tmp_path / "run", 64, "/app", file, theirs.fileno(), "spin")
    host = LocalHost()
    yield lambda mode="": Rig(
        tmp_path, spec, output, host, StandInProgram(tmp_path / "bin", "firecracker", mode)
    )
    assert [child.name for child in host.children.values() if child.exited is None] == []
    assert os.listdir(spec.directory) == []
    await host.aclose()
    os.close(file)
    output.close()
    theirs.close()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


async def live(rig: Rig, spec: UnikernelSpec, **settings: Any) -> tuple[str, ...]:
    """Run it until it is stopped; returns its warnings."""
    monitor = rig.monitor(**settings)
    await monitor.prepare(spec)
    await monitor.run()
    await monitor.verify_confinement()
    await monitor.stop()
    return monitor.warnings


UNCONFINED = "firecracker runs unconfined: {} = true in [hypervisor.firecracker] turns its seccomp filter off"


@pytest.mark.parametrize(
    ("settings", "unconfined", "because"),
    [
        ({}, False, ""),
        ({}, True, ""),
        ({"honor_unconfined": True}, False, ""),
        ({"honor_unconfined": True}, True, "honor_unconfined"),
        ({"disable_seccomp": True}, False, "disable_seccomp"),
    ],
)
async def test_its_command_line(
    make: Make, settings: dict[str, bool], unconfined: bool, because: str
) -> None:
    rig = make()
    warnings = await live(rig, replace(rig.spec, unconfined=unconfined), **settings)
    (argv,) = [entry["argv"] for entry in rig.program.record if "argv" in entry]
    assert argv == [
        *(
            "--id",
            "pod-1",
            "--api-sock",
            str(rig.spec.directory / "vmm/firecracker.sock"),
            "--level",
            "Warning",
        ),
        *(["--no-seccomp"] if because else []),
        *("--log-path", "/proc/self/fd/2"),
    ]
    assert [one for one in warnings if "unconfined" in one] == (
        [UNCONFINED.format(because)] if because else []
    )


async def test_what_it_asks_for(make: Make) -> None:
    rig = make()
    whole = replace(
        rig.spec,
        initrd=rig.spec.file,
        block=BlockFile(rig.spec.file),
        net=NetTap(-1, bytes.fromhex("020000000001"), name="tap0"),
    )
    await live(rig, whole, default_vcpus=2)
    asked = [(entry["path"], entry["body"]) for entry in rig.program.record if entry.get("method") == "PUT"]
    own = "/proc/self/fd"
    boot = {"kernel_image_path": f"{own}/4", "boot_args": "spin", "initrd_path": f"{own}/5"}
    drive = {
        "drive_id": "block",
        "path_on_host": f"{own}/6",
        "is_root_device": False,
        "is_read_only": False,
    }
    net = {"iface_id": "net", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01"}
    assert asked == [
        ("/boot-source", boot),
        ("/machine-config", {"vcpu_count": 2, "mem_size_mib": 64}),
        ("/cpu-config", {"cpuid_modifiers": NOT_NESTED}),
        ("/drives/block", drive),
        ("/network-interfaces/net", net),
        ("/actions", {"action_type": "InstanceStart"}),
    ]


DESCRIPTIONS = [one for one in openapi.specifications() if one.values[0] == "firecracker"]


@pytest.mark.parametrize(("name", "file"), DESCRIPTIONS)
async def test_it_keeps_to_the_description(name: str, file: Path, make: Make) -> None:
    rig = make()
    net = NetTap(-1, bytes(6), name="tap0")
    await live(rig, replace(rig.spec, initrd=rig.spec.file, block=BlockFile(rig.spec.file), net=net))
    description = Description(file)
    entries = [entry for entry in rig.program.record if "method" in entry]
    assert len(entries) > 5
    for entry in entries:
        description.check_request(entry["method"], entry["path"], entry["body"])


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        (
            "unfiltered",
            ConfinementError,
            r"seccomp mode 0 for thread \d+ \(fc_api\) of firecracker; disable_seccomp = false in",
        ),
        ("toothless", ConfinementError, "allows every system call; disable_seccomp = false in"),
        ("exit:3", LaunchError, "exited with status 3 before the guest was ready: it is not my day"),
        (
            "silent",
            LaunchError,
            "exited with status 1 before the guest was ready, and wrote nothing to stderr",
        ),
        ("/boot-source=400", LaunchError, "naming the kernel: .*it does not want to"),
        ("crash:/machine-config", LaunchError, "killed by SIGSEGV"),
        ("garbage:/version", LaunchError, "asking firecracker for its version: "),
    ],
)
async def test_one_that_is_not_prepared(
    make: Make, mode: str, error: type[HypervisorError], message: str
) -> None:
    rig = make(mode)
    with pytest.raises(error, match=message):
        await rig.monitor().prepare(rig.spec)
    assert not any(entry.get("path") == "/actions" for entry in rig.program.record)


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        ("leaky", ConfinementError, r"\(fc_vcpu 0\) of firecracker; disable_seccomp"),
        ("late:/actions", LaunchError, "starting the virtual CPUs: no answer within 0.3 s"),
        ("crash:/actions", LaunchError, "killed by SIGSEGV"),
        ("/actions=400", LaunchError, "it does not want to"),
    ],
)
async def test_one_that_does_not_run(
    make: Make, mode: str, error: type[HypervisorError], message: str
) -> None:
    rig = make(mode)
    monitor = rig.monitor()
    await monitor.prepare(rig.spec)
    monitor._machine._start_budget = 0.3
    with pytest.raises(error, match=message):
        await monitor.run()


async def test_one_that_ends_before_it_is_said_to_run(make: Make) -> None:
    rig = make()
    monitor = rig.monitor()
    await monitor.prepare(replace(rig.spec, command_line="echo words"))
    await monitor.run()
    end = await monitor.wait()
    assert (end.status, end.requested, end.reason) == (ExitStatus(code=0), False, "the guest shut down")
    assert rig.output.recv(100) == b"echo words"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"path": "/nonexistent/firecracker"},
            HostUnfitError,
            "/nonexistent/firecracker is not an executable",
        ),
        (
            {"jailer_path": "/usr/bin/jailer"},
            NotSupportedError,
            "firecracker's jailer passes no open files on",
        ),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_starts(
    make: Make, settings: dict[str, str], error: type[HypervisorError], message: str
) -> None:
    rig = make()
    with pytest.raises(error, match=message):
        await rig.monitor(**settings).prepare(rig.spec)
    assert rig.host.children == {}


async def test_a_tap_as_a_descriptor_is_refused(make: Make) -> None:
    rig = make()
    with pytest.raises(NotSupportedError, match="firecracker cannot take a tap as a descriptor"):
        await rig.monitor().prepare(replace(rig.spec, net=NetTap(0, bytes(6))))
