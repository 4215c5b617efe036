"""What this host must have before QEMU is started: a sentence about what is missing, before QEMU fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kata_hypervisor.contract import VmSpec
from kata_hypervisor.host_checks import (
    HUGE_PAGES,
    KVM,
    MEMINFO,
    check_executable,
    check_guest_memory,
    check_kvm,
    check_readable,
    check_room,
)

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

TABLE = "[hypervisor.qemu]"


def check_host(
    table: QemuTable,
    spec: VmSpec,
    *,
    kvm: Path = KVM,
    meminfo: Path = MEMINFO,
    huge_pages: Path = HUGE_PAGES,
) -> tuple[str, ...]:
    """Check what can be checked without starting anything; return what the operator should be warned of.

    Raises:
        HostUnfitError: something that the configuration needs is missing; says what to do.
    """
    warnings = check_program(table, spec.memory_mib, kvm=kvm, meminfo=meminfo, huge_pages=huge_pages)
    check_readable("the guest's kernel", spec.kernel, f"correct kernel in {TABLE}")
    if spec.initrd is not None:
        check_readable("the guest's initrd", spec.initrd, f"correct initrd in {TABLE}")
    check_room(spec.memory_mib, spec.kernel, spec.initrd, TABLE)
    if spec.image is not None:
        check_readable("the guest's image", spec.image, f"correct image in {TABLE}")
    if table.firmware is not None:
        check_readable("the machine's firmware", table.firmware, f"correct firmware in {TABLE}")
    check_readable("the source of random numbers", table.entropy_source, f"correct entropy_source in {TABLE}")
    if not table.confined:
        warnings.append(
            f'qemu runs unconfined: seccompsandbox = "{table.seccompsandbox}" in {TABLE} '
            "turns its seccomp filter off"
        )
    return tuple(warnings)


def check_program(
    table: QemuTable,
    memory_mib: int,
    *,
    kvm: Path = KVM,
    meminfo: Path = MEMINFO,
    huge_pages: Path = HUGE_PAGES,
) -> list[str]:
    """Check what QEMU itself needs, whatever it runs. Returns and raises as `check_host` does."""
    if table.accelerator == "kvm":
        check_kvm(kvm, "qemu")
    check_executable("qemu", table.path, f"install the package qemu-system-x86, or correct path in {TABLE}")
    huge = table.enable_hugepages
    return check_guest_memory(memory_mib, TABLE, huge=huge, meminfo=meminfo, reserve=huge_pages)
