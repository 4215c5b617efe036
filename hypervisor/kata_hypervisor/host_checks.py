"""What a host must have before a VMM is started: a sentence about what is missing, before the VMM fails."""

from __future__ import annotations

import os
from pathlib import Path

from kata_hypervisor.errors import HostUnfitError

KVM = Path("/dev/kvm")
MEMINFO = Path("/proc/meminfo")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
"""The host's reserve of huge pages of 2 MiB; the kernel's Documentation/admin-guide/mm/hugetlbpage.rst."""
HUGE_PAGE_MIB = 2


EMULATE = 'accelerator = "tcg" in [hypervisor.qemu]'


def way_without_kvm(hypervisor: str) -> str:
    """Say what to configure where KVM does not run guests. hypervisor: the table's name."""
    if hypervisor == "qemu":
        return f"set {EMULATE} to emulate (slow)"
    return f'set hypervisor_name = "qemu" in [runtime] and {EMULATE} to emulate (slow)'


def check_kvm(kvm: Path, hypervisor: str) -> None:
    """Raise HostUnfitError unless KVM can be opened. hypervisor: the table's name, for what to do instead."""
    try:
        os.close(os.open(kvm, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise HostUnfitError(
            f"cannot use KVM: {kvm}: {error.strerror}; {way_without_kvm(hypervisor)}"
        ) from error


def check_executable(program: str, path: Path, way_out: str) -> None:
    """Raise HostUnfitError unless a program is there and may be run."""
    if not os.access(path, os.X_OK) or path.is_dir():
        raise HostUnfitError(f"cannot run {program}: {path} is not an executable file; {way_out}")


def check_readable(what: str, path: Path, way_out: str) -> None:
    """Raise HostUnfitError unless a file can be opened."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise HostUnfitError(f"cannot open {what}: {path}: {error.strerror}; {way_out}") from error


def check_room(memory_mib: int, kernel: Path, initrd: Path | None, table: str) -> None:
    """Refuse a kernel and an initrd that are larger than the guest's memory, before a VMM tries."""
    files = {"kernel": kernel, **({"initrd": initrd} if initrd is not None else {})}
    size = sum(path.stat().st_size for path in files.values())
    if size >= memory_mib << 20:
        raise HostUnfitError(
            f"cannot boot the guest: its {' and '.join(files)} ({', '.join(map(str, files.values()))}) have "
            f"{-(-size >> 20)} MiB, its memory {memory_mib} MiB; raise default_memory in {table}"
        )


def check_guest_memory(
    wanted_mib: int, table: str, *, huge: bool, meminfo: Path = MEMINFO, reserve: Path = HUGE_PAGES
) -> list[str]:
    """Check that the host has a guest's memory, in huge pages or not; return what to warn of.

    table: the hypervisor's, for what to do. meminfo, reserve: where the kernel says what there is.

    Raises:
        HostUnfitError: it can never fit, or its huge pages do not fit now.
    """
    if huge:
        _check_huge_pages(wanted_mib, reserve, table)
        return []
    return _check_memory(wanted_mib, meminfo, table)


def _check_huge_pages(wanted_mib: int, reserve: Path, table: str) -> None:
    """Refuse a guest for whose memory the host's reserve of huge pages has no room now.

    A VMM that takes them page by page would be killed by SIGBUS at the first that is not there.

    Raises:
        HostUnfitError: they are too few, or the kernel has none.
    """
    wanted = -(-wanted_mib // HUGE_PAGE_MIB)
    instead = f"or set enable_hugepages = false in {table}"
    try:
        free, promised, reserved = (
            int((reserve / f"{name}_hugepages").read_text()) for name in ("free", "resv", "nr")
        )
    except OSError as error:
        raise HostUnfitError(
            f"cannot give the guest huge pages: {reserve}: {error.strerror}; load a kernel that has them, "
            + instead
        ) from error
    if wanted > free - promised:
        raise HostUnfitError(
            f"cannot give the guest {wanted} huge pages of {HUGE_PAGE_MIB} MiB: this host has "
            f"{max(free - promised, 0)} left; reserve more (sysctl "
            f"vm.nr_hugepages={reserved + wanted - max(free - promised, 0)}), {instead}"
        )


def _check_memory(wanted_mib: int, meminfo: Path, table: str) -> list[str]:
    """Refuse what can never fit. What does not fit now is a warning: guest memory is taken page by page."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    total, swap, available = (
        int(fields[key].split()[0]) // 1024 for key in ("MemTotal", "SwapTotal", "MemAvailable")
    )
    if wanted_mib > total + swap:
        raise HostUnfitError(
            f"cannot give the guest {wanted_mib} MiB of memory: this host has {total} MiB and {swap} MiB of "
            f"swap; lower default_memory in {table} or the pod's memory limit"
        )
    if wanted_mib > available:
        return [f"the guest may use {wanted_mib} MiB of memory, this host has {available} MiB left"]
    return []
