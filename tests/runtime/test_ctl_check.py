"""Each check against a host that is made up, and the exit status of all of them."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from kata_configuration import load
from kata_configuration.layer.discovery import ENVIRONMENT
from kata_hypervisor.kvm.probe import KvmProbeResult
from kata_runtime.ctl import check
from kata_runtime.ctl.findings import Finding, Setup, Status
from kata_runtime.image import command


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A host without anything."""
    return Setup(
        "kvm",
        tmp_path / "qemu",
        tmp_path / "virtiofsd",
        512,
        (tmp_path / "vmlinuz",),
        Finding("configuration", Status.OK, ""),
        tmp_path,
    )


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("unmodified", "accelerator", "status"),
    [(True, "kvm", "ok"), (True, "tcg", "ok"), (False, "kvm", "fail"), (False, "tcg", "warn")],
)
def test_kvm(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, unmodified: bool, accelerator: str, status: str
) -> None:
    result = KvmProbeResult(True, unmodified, "because")
    monkeypatch.setattr("kata_hypervisor.kvm.probe.probe_kvm", lambda device: result)
    found = check.check_kvm(replace(setup, accelerator=accelerator))
    assert found.status == status
    assert found.cause.startswith("because")
    assert bool(found.fix) == (status == "fail")


@pytest.mark.parametrize(
    ("function", "path", "fix"),
    [
        (check.check_vhost_vsock, "dev/vhost-vsock", "modprobe vhost_vsock"),
        (check.check_tun, "dev/net/tun", "modprobe tun"),
    ],
)
def test_devices(setup: Setup, function: check.Check, path: str, fix: str) -> None:
    without = function(setup)
    assert (without.status, without.fix) == (Status.WARN, fix)
    (setup.root / path).parent.mkdir(parents=True, exist_ok=True)
    (setup.root / path).touch()
    assert function(setup).status is Status.OK


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        ("echo 'QEMU emulator version 7.2.22 (Debian 1:7.2)'", "ok", "qemu 7.2.22"),
        ("echo 'QEMU emulator version 10.0.2'", "ok", "qemu 10.0.2"),
        ("echo 'QEMU emulator version 5.2.0'", "fail", "is version 5.2.0, 6.2 or later is needed"),
        ("echo hello", "fail", "names no version"),
        ("exit 3", "fail", "exit status 3"),
    ],
)
def test_qemu(setup: Setup, body: str, status: str, cause: str) -> None:
    assert setup.program is not None
    script(setup.program, body)
    found = check.check_vmm(setup)
    assert found.status == status
    assert cause in found.cause


@pytest.mark.parametrize(
    ("version", "kernel", "status"),
    [
        ("1.16.1", "bzImage", "fail"),
        ("1.16.1", "ELF", "ok"),
        ("1.16.1", "none", "ok"),
        ("1.17.0-dev", "bzImage", "ok"),
    ],
)
def test_a_kernel_that_this_firecracker_does_not_boot(
    setup: Setup, tmp_path: Path, version: str, kernel: str, status: str
) -> None:
    assert setup.program is not None
    script(setup.program, f"echo 'Firecracker v{version}'")
    heads = {"bzImage": bytes(0x1FE) + b"\x55\xaa\xeb\x66HdrS", "ELF": b"\x7fELF"}
    path = tmp_path / "kernel"
    if kernel in heads:
        path.write_bytes(heads[kernel])
    found = check.check_vmm(replace(setup, hypervisor="firecracker", artifacts=(path,)))
    assert found.status == status
    sentence = f"firecracker 1.16.1 loads ELF kernels only, and {path} is a bzImage: install 1.17 or later"
    assert (sentence in found.cause) == (status == "fail")


def test_qemu_is_missing(setup: Setup) -> None:
    found = check.check_vmm(setup)
    assert (found.status, found.fix) == (Status.FAIL, "apt-get install qemu-system-x86")


@pytest.mark.parametrize(
    ("content", "dialect"), [(b"ELF --shared-dir", "Rust"), (b"ELF announce_submounts", "C")]
)
def test_virtiofsd(setup: Setup, content: bytes, dialect: str) -> None:
    assert setup.virtiofsd is not None
    setup.virtiofsd.write_bytes(content)
    assert check.check_virtiofsd(setup).cause.endswith(f"the one in {dialect}")


def test_virtiofsd_is_missing(setup: Setup) -> None:
    found = check.check_virtiofsd(setup)
    assert found.status is Status.FAIL
    assert found.fix.startswith("apt-get install virtiofsd")


@pytest.mark.parametrize(
    ("capabilities", "nr_open", "status", "most"),
    [(1 << 24, 1 << 20, "ok", 1_000_000), (1 << 24, 5000, "warn", 5000), (0, 1 << 20, "warn", 4096)],
)
def test_open_files(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capabilities: int, nr_open: int, status: str, most: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    for name, text in {"self/status": f"CapEff:\t{capabilities:x}", "sys/fs/nr_open": str(nr_open)}.items():
        path = setup.root / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = check.check_open_files(setup)
    assert (found.status, str(most) in found.cause) == (status, True)
    assert check.check_open_files(replace(setup, virtiofsd=None)).status is Status.OK


def test_containerd(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SEARCH_PATH", str(setup.root))
    missing = check.check_containerd(setup)
    assert (missing.status, missing.fix) == (Status.FAIL, "apt-get install containerd")
    script(
        setup.root / "containerd", "echo containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1"
    )
    assert check.check_containerd(setup).cause.endswith("containerd 1.6.20~ds1")
    script(setup.root / "containerd", "echo containerd github.com/containerd/containerd/v2 v2.1.0 abcdef")
    assert check.check_containerd(setup).status is Status.OK
    script(setup.root / "containerd", "echo containerd github.com/containerd/containerd 1.5.9")
    assert check.check_containerd(setup).status is Status.FAIL


def test_handlers(setup: Setup) -> None:
    missing = check.check_handlers(setup)
    assert (missing.status, missing.fix) == (Status.WARN, "kata-ctl containerd configure")
    path = setup.root / "etc/containerd/config.toml"
    path.parent.mkdir(parents=True)
    table = 'plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata'
    right = (
        f'version = 3\n[{table}]\nruntime_type = "io.containerd.kata.v2"\n'
        'privileged_without_host_devices = true\nsnapshotter = "native"\n'
    )
    path.write_text(right)
    assert check.check_handlers(setup).status is Status.OK
    wrong = right.replace("kata.v2", "runc.v2").replace("native", "devmaper").replace("true", "false")
    path.write_text(wrong)
    found = check.check_handlers(setup)
    assert (found.status, found.fix) == (Status.WARN, f"kata-ctl config lint {path}")
    assert "error[KATA802]" in found.cause  # the worst, though others stand before it
    assert found.cause.endswith(", and 2 more")
    path.write_text("version = \n")
    assert "KATA101" in check.check_handlers(setup).cause


def test_cgroups(setup: Setup) -> None:
    assert check.check_cgroups(setup).status is Status.WARN
    base = setup.root / "sys/fs/cgroup"
    (base / "memory").mkdir(parents=True)
    assert check.check_cgroups(setup).cause == "version 1"
    (base / "cgroup.controllers").touch()
    assert check.check_cgroups(setup).cause == "version 2"


def test_memory(setup: Setup) -> None:
    (setup.root / "proc").mkdir()
    for free, status in ((2_000_000, Status.OK), (300_000, Status.WARN)):
        (setup.root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {free} kB\n")
        assert check.check_memory(setup).status is status


def test_shared_memory(setup: Setup) -> None:
    assert check.check_shared_memory(setup).status is Status.WARN
    (setup.root / "dev/shm").mkdir(parents=True)
    assert check.check_shared_memory(setup).status is Status.OK


def test_the_guest_image(setup: Setup) -> None:
    missing = check.check_image(setup)
    assert (missing.status, missing.fix) == (Status.FAIL, "kata-ctl image build")
    assert str(setup.artifacts[0]) in missing.cause
    setup.artifacts[0].touch()
    assert check.check_image(setup).status is Status.OK


SHIPPED = Path(__file__).parents[2] / "configuration/configuration-qemu.toml"


def test_without_a_configuration_the_host_is_held_to_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = check.setup_of(load(SHIPPED, check_host=False))
    path = tmp_path / "configuration.toml"
    monkeypatch.setenv(ENVIRONMENT, str(path))
    absent = check.read_setup()
    path.write_text("[runtime\n")
    path.chmod(0o644)
    faulty = check.read_setup()
    for found in (absent, faulty):
        same = replace(found, configuration=shipped.configuration, virtiofsd=shipped.virtiofsd)
        assert same == shipped
    assert "KATA002" in absent.configuration.cause
    assert (absent.configuration.fix, faulty.configuration.fix) == ("", "kata-ctl config lint")


@pytest.mark.parametrize(
    ("statuses", "exit_status"),
    [((Status.OK, Status.WARN), check.FIT), ((Status.OK, Status.FAIL), check.UNFIT)],
)
def test_the_exit_status_is_that_of_the_worst(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statuses: tuple[Status, ...],
    exit_status: int,
) -> None:
    checks = [lambda _, status=status: Finding("name", status, "cause", "fix it") for status in statuses]
    monkeypatch.setattr(check, "CHECKS", checks)
    monkeypatch.setattr(check, "read_setup", lambda: setup)
    assert check.run_check(argparse.Namespace(json=True)) == exit_status
    printed = json.loads(capsys.readouterr().out)
    assert [finding["status"] for finding in printed] == ["ok", *statuses]
    assert check.run_check(argparse.Namespace(json=False)) == exit_status
    assert "to mend it: fix it" in capsys.readouterr().out
