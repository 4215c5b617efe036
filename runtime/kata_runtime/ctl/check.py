"""kata-ctl check: what this host can run, and what to do where it cannot.

Each check is a function from the host's `Setup` to one `Finding`; `CHECKS` is the list of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kata_runtime.ctl.findings import Finding, Setup, Status

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_hypervisor.driver_info import DriverInfo
    from kata_runtime.ctl.main import Subparsers

FIT, UNFIT = 0, 1
OLDEST_CONTAINERD = (1, 6)
PROGRAM_DEADLINE = 10.0


Check = Callable[[Setup], Finding]


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "check",
        help="find out what this host can run",
        description="Check this host against the configuration in force, or against the defaults.",
        epilog="Exit status: 0 virtual machines can run, 1 something is missing.",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Run all checks, print the findings, and return the exit status."""
    setup = read_setup()
    findings = [setup.configuration, *(check(setup) for check in CHECKS)]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    return UNFIT if any(finding.status is Status.FAIL for finding in findings) else FIT


def read_setup() -> Setup:
    """Read the configuration in force; where there is none, or a faulty one, the defaults stand in."""
    from kata_configuration import ConfigurationError, discover, load
    from kata_configuration.diagnostics import Code
    from kata_configuration.judge.host import VIRTIOFSD_PLACES
    from kata_configuration.models import HYPERVISORS
    from kata_runtime.image import builder

    name = "configuration"
    try:
        path, source = discover(None, os.environ)
        configuration = load(path, check_host=False, source=source)
    except ConfigurationError as error:
        cause, *_ = str(error).splitlines()
        # Where there is none, linting says no more than this.
        absent = error.diagnostics[0].code == Code.NOT_FOUND.number
        finding = Finding(name, Status.WARN, cause, "" if absent else "kata-ctl config lint")
        defaults = HYPERVISORS["qemu"].model_fields
        virtiofsd = next((place for place in VIRTIOFSD_PLACES if place.exists()), VIRTIOFSD_PLACES[0])
        artifacts = tuple(
            builder.DEFAULT_OUTPUT / name for name in (builder.KERNEL, builder.INITRAMFS, builder.IMAGE)
        )
        memory = defaults["default_memory"].default
        return Setup("kvm", defaults["path"].default, virtiofsd, memory, artifacts, finding)
    return setup_of(configuration)


def setup_of(configuration: Configuration) -> Setup:
    """What the host is checked against, of a configuration."""
    table = configuration.hypervisor
    return Setup(
        "kvm" if table.needs_kvm else "tcg",
        table.program,
        table.file_daemon,
        table.default_memory,
        table.guest_files,
        Finding("configuration", Status.OK, str(configuration)),
        hypervisor=configuration.hypervisor_name,
        full_kvm=table.needs_full_kvm,
    )


def check_kvm(setup: Setup) -> Finding:
    """Whether the guest's instructions can run as the configuration says, by running a few."""
    from kata_hypervisor import registry
    from kata_hypervisor.host_checks import way_without_kvm
    from kata_hypervisor.kvm.probe import probe_kvm

    info = registry.info_of(setup.hypervisor)
    emulated = setup.accelerator == "tcg"
    if emulated and not info.machine:
        return Finding("kvm", Status.OK, f"not needed: {info.program} runs without it")
    found = probe_kvm(str(setup.root / "dev/kvm"))
    if found.runs_unmodified_guests:
        return Finding("kvm", Status.OK, found.reason)
    if emulated:
        return Finding("kvm", Status.WARN, f"{found.reason}; {info.program} emulates (slow), as configured")
    if found.usable and not setup.full_kvm:
        return Finding("kvm", Status.OK, f"runs unikernels; {found.reason}")
    return Finding("kvm", Status.FAIL, found.reason, way_without_kvm(setup.hypervisor))


def check_vhost_vsock(setup: Setup) -> Finding:
    """Whether the host's vsock device is there, for a driver that reaches its agent by it."""
    from kata_hypervisor import registry

    info = registry.info_of(setup.hypervisor)
    if not info.machine:
        return Finding("vhost-vsock", Status.OK, "not needed: a unikernel has no agent")
    if info.vhost_vsock == "unused":
        return Finding("vhost-vsock", Status.OK, f"not needed: {info.program} has a socket of its own")
    required = info.vhost_vsock == "required"
    without = "no agent is reached" if required else "the agent is reached by a virtio-serial port"
    found = _device(setup, "vhost-vsock", "dev/vhost-vsock", without, "modprobe vhost_vsock")
    return replace(found, status=Status.FAIL) if required and found.status is not Status.OK else found


def check_tun(setup: Setup) -> Finding:
    """Whether pods can have a network."""
    return _device(setup, "tun", "dev/net/tun", "pods can have no network", "modprobe tun")


def check_vmm(setup: Setup) -> Finding:
    """Whether the program that runs virtual machines is there, and of which version."""
    from kata_hypervisor import registry
    from kata_hypervisor.versions import numbers_of

    info = registry.info_of(setup.hypervisor)
    if setup.program is None:
        return Finding(info.program, Status.OK, "none, it is the runtime's own process")
    oldest = (numbers_of(info.required) or (0, 0))[:2]
    found = _program(info.program, setup.program, oldest, info.install)
    if found.status is Status.OK and info.supported is not None:
        version = found.cause.rpartition(" ")[2]
        if unbootable := _unbootable(info, version, setup):
            return Finding(info.program, Status.FAIL, unbootable)
        if (warning := info.supported.version_warning(info.program, version)) is not None:
            return Finding(info.program, Status.WARN, f"{setup.program}: {warning}", "see docs/drivers")
    return found


def _unbootable(info: DriverInfo, version: str, setup: Setup) -> str:
    """Why the program does not boot the guest's kernel, the first artifact."""
    from kata_hypervisor.bootable import unbootable

    try:
        return unbootable(info, version, setup.artifacts[0]) if setup.artifacts else ""
    except OSError:
        return ""


def check_virtiofsd(setup: Setup) -> Finding:
    """Whether virtiofsd is there, and which one."""
    from kata_hypervisor.errors import HostUnfitError
    from kata_hypervisor.virtiofsd import dialect_of

    if setup.virtiofsd is None:
        return Finding("virtiofsd", Status.OK, "not needed: this hypervisor shares no files")
    try:
        dialect = dialect_of(setup.virtiofsd)
    except HostUnfitError as error:
        cause = str(error).partition(";")[0]
        fix = "apt-get install virtiofsd (Debian 12, Ubuntu 22.04: qemu-system-common)"
        return Finding("virtiofsd", Status.FAIL, cause, fix)
    return Finding("virtiofsd", Status.OK, f"{setup.virtiofsd}, the one in {dialect.value}")


def check_open_files(setup: Setup) -> Finding:
    """Whether a guest can know many files: virtiofsd holds each of them open."""
    from kata_hypervisor.virtiofsd import FEW_OPEN_FILES, most_open_files

    if setup.virtiofsd is None:
        return Finding("open files", Status.OK, "not needed: this hypervisor shares no files")
    most = most_open_files(proc=setup.root / "proc")
    cause = f"virtiofsd may have {most}"
    if most < FEW_OPEN_FILES:
        cause += ": a guest that looks at more files forgets them early, and is slower"
        return Finding("open files", Status.WARN, cause, "raise LimitNOFILE of containerd's service")
    return Finding("open files", Status.OK, cause)


def check_containerd(setup: Setup) -> Finding:
    """Whether containerd is there, and one that we support."""
    from kata_runtime.image import command
    from kata_runtime.image.errors import ToolError

    try:
        path = Path(command.find("containerd"))
    except ToolError as error:
        return Finding(
            "containerd", Status.FAIL, "containerd is not installed", str(error).partition(": ")[2]
        )
    return _program("containerd", path, OLDEST_CONTAINERD, "apt-get install containerd")


def check_handlers(setup: Setup) -> Finding:
    """Whether containerd's configuration lets pods of Kubernetes reach this runtime, and as they should.

    Nothing here keeps a virtual machine from running: a client such as ctr names the runtime itself.
    """
    from kata_configuration import ConfigurationError, Severity
    from kata_configuration.layer.layers import read_files
    from kata_configuration.loading import containerds_diagnostics
    from kata_runtime.ctl.containerd import FILE

    name, path = "handlers", setup.root / FILE.relative_to("/")
    try:
        found = containerds_diagnostics(read_files(path).layers[0], check_host=True)
    except ConfigurationError as error:
        return Finding(name, Status.WARN, str(error.diagnostics[0]), "kata-ctl containerd configure")
    faults = [item for item in found if item.severity is Severity.ERROR]
    faults += [item for item in found if item.severity is Severity.WARNING]
    if not faults:
        return Finding(name, Status.OK, f"{path} has this runtime")
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return Finding(name, Status.WARN, f"{faults[0]}{more}", f"kata-ctl config lint {path}")


def check_cgroups(setup: Setup) -> Finding:
    """Which cgroups the host has."""
    base = setup.root / "sys/fs/cgroup"
    if (base / "cgroup.controllers").exists():
        return Finding("cgroups", Status.OK, "version 2")
    if (base / "cpu").exists() or (base / "memory").exists():
        return Finding("cgroups", Status.OK, "version 1")
    return Finding("cgroups", Status.WARN, f"none at {base}: pods are not limited", "mount cgroups")


def check_shared_memory(setup: Setup) -> Finding:
    """How much /dev/shm has; guests take their memory from memfd, which does not come out of it."""
    try:
        status = os.statvfs(setup.root / "dev/shm")
    except FileNotFoundError:
        return Finding("/dev/shm", Status.WARN, "does not exist", "mount -t tmpfs tmpfs /dev/shm")
    free, total = (blocks * status.f_frsize // 2**20 for blocks in (status.f_bavail, status.f_blocks))
    return Finding("/dev/shm", Status.OK, f"{free} of {total} MiB free")


def check_memory(setup: Setup) -> Finding:
    """Whether one virtual machine of the configured size fits now."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", (setup.root / "proc/meminfo").read_text(), re.MULTILINE)
    free = int(match[1]) // 1024 if match else 0
    cause = f"{free} MiB available, a virtual machine may use {setup.memory_mib} MiB"
    if free < setup.memory_mib:
        return Finding("memory", Status.WARN, cause, "free memory, or lower default_memory")
    return Finding("memory", Status.OK, cause)


def check_image(setup: Setup) -> Finding:
    """Whether the guest's files are there."""
    if not setup.artifacts:
        return Finding("guest image", Status.OK, "not needed: a unikernel brings its own kernel")
    missing = [str(path) for path in setup.artifacts if not path.is_file()]
    if missing:
        return Finding("guest image", Status.FAIL, f"missing: {', '.join(missing)}", "kata-ctl image build")
    return Finding("guest image", Status.OK, ", ".join(str(path) for path in setup.artifacts))


CHECKS: tuple[Check, ...] = (
    check_kvm,
    check_vhost_vsock,
    check_tun,
    check_vmm,
    check_virtiofsd,
    check_open_files,
    check_containerd,
    check_handlers,
    check_cgroups,
    check_shared_memory,
    check_memory,
    check_image,
)


def _device(setup: Setup, name: str, path: str, without: str, fix: str) -> Finding:
    """A device that the host can do without, at a loss."""
    device = setup.root / path
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding(name, Status.WARN, f"{device}: {error.strerror}; {without}", fix)
    return Finding(name, Status.OK, str(device))


def _program(name: str, path: Path, oldest: tuple[int, int], fix: str) -> Finding:
    """A program that must be there and print a version that is not too old."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, timeout=PROGRAM_DEADLINE, check=True, text=True
        )
    except OSError as error:
        return Finding(name, Status.FAIL, f"{path}: {error.strerror}", fix)
    except subprocess.SubprocessError as error:
        return Finding(name, Status.FAIL, f"{path} --version: {error}", fix)
    match = re.search(r"(?<![\d.])(\d+)\.(\d+)[\w.+~-]*", done.stdout or done.stderr)
    if match is None:
        return Finding(name, Status.FAIL, f"{path} --version names no version", fix)
    version, needed = match[0], ".".join(str(number) for number in oldest)
    if (int(match[1]), int(match[2])) < oldest:
        return Finding(name, Status.FAIL, f"{path} is version {version}, {needed} or later is needed", fix)
    return Finding(name, Status.OK, f"{path} {version}")


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
    table = Table("check", "", "finding", box=None, pad_edge=False)
    for finding in findings:
        fix = f"\nto mend it: {finding.fix}" if finding.fix else ""
        table.add_row(
            finding.name,
            Text(finding.status, styles[finding.status]),
            Text(finding.cause + fix, overflow="fold"),
        )
    Console().print(table)
