"""What this host must have before QEMU is worth starting: a sentence now instead of a riddle later."""

from __future__ import annotations

import os
from pathlib import Path

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.errors import HostUnfitError

KVM = Path("/dev/kvm")
MEMINFO = Path("/proc/meminfo")
TABLE = "[hypervisor.qemu]"


def check_host(
    table: QemuTable, spec: VmSpec, *, kvm: Path = KVM, meminfo: Path = MEMINFO
) -> tuple[str, ...]:
    """Check what can be checked without starting anything; return what the operator should be warned of.

    Raises:
        HostUnfitError: something that the configuration needs is missing; says what to do.
    """
    if table.accelerator == "kvm":
        _check_kvm(kvm)
    _check_executable(table.path)
    _check_readable("the guest's kernel", spec.kernel, "kernel")
    if spec.initrd is not None:
        _check_readable("the guest's initrd", spec.initrd, "initrd")
    if spec.image is not None:
        _check_readable("the guest's image", spec.image, "image")
    _check_readable("the source of random numbers", table.entropy_source, "entropy_source")
    warnings = _check_memory(spec.memory_mib, meminfo)
    if not table.confined:
        warnings.append(
            f'qemu runs unconfined: seccompsandbox = "{table.seccompsandbox}" in {TABLE} '
            "puts no filter on its system calls"
        )
    return tuple(warnings)


def _check_kvm(kvm: Path) -> None:
    try:
        os.close(os.open(kvm, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise HostUnfitError(
            f"cannot use KVM: {kvm}: {error.strerror}; "
            f'set accelerator = "tcg" in {TABLE} to run without KVM (slow)'
        ) from error


def _check_executable(path: Path) -> None:
    if not os.access(path, os.X_OK) or path.is_dir():
        raise HostUnfitError(
            f"cannot run qemu: {path} is not an executable file; "
            f"install the package qemu-system-x86, or correct path in {TABLE}"
        )


def _check_readable(what: str, path: Path, key: str) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise HostUnfitError(
            f"cannot open {what}: {path}: {error.strerror}; correct {key} in {TABLE}"
        ) from error


def _check_memory(wanted_mib: int, meminfo: Path) -> list[str]:
    """Refuse what can never fit. What does not fit now is a warning: guest memory is taken page by page."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    total, swap, available = (
        int(fields[key].split()[0]) // 1024 for key in ("MemTotal", "SwapTotal", "MemAvailable")
    )
    if wanted_mib > total + swap:
        raise HostUnfitError(
            f"cannot give the guest {wanted_mib} MiB of memory: this host has {total} MiB and {swap} MiB of "
            f"swap; lower default_memory in {TABLE} or the pod's memory limit"
        )
    if wanted_mib > available:
        return [f"the guest may use {wanted_mib} MiB of memory, this host has {available} MiB left"]
    return []
