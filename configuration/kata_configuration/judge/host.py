"""What this host lacks for a table: applied at each loading, also of a configuration that was kept.

Importing this imports no model: a table is asked for its attributes, and by `has_key`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata_configuration.diagnostics import Code, Finding
from kata_configuration.judge.rule import Rule
from kata_configuration.parse import trust

if TYPE_CHECKING:
    from kata_configuration.models import Table


def _host_file(key: str) -> Rule:
    """Demand that the path of a key, when it has one, names a regular file that only root can change."""

    def check(table: Any) -> Iterator[Finding]:
        path: Path | None = getattr(table, key)
        if path is None:
            return
        if wrong := _file_fault(path):
            yield Finding(Code.HOST_PATH, (key,), f"{path} {wrong}", "correct the path or install the file")
        yield from _writable(key, path)

    return Rule("hypervisor", (key,), check)


def _writable(key: str, path: Path) -> Iterator[Finding]:
    """Warn of a file that others than root may change, or put another one in the place of."""
    try:
        places = [trust.Place(path, path.stat()), *trust.directories_of(path)]
    except OSError:
        return  # that it is missing is reported elsewhere
    for found in trust.check(places, trust.trusted_uids()):
        message = f"{found.path} {found.message}: who may do that changes what runs"
        yield Finding(Code.HOST_WRITABLE, (key,), message, found.hint)
        return


def _program(table: Any) -> Iterator[Finding]:
    yield from _program_fault("path", table.path)


def _jailer(table: Any) -> Iterator[Finding]:
    if table.jailer_path is not None:
        yield from _program_fault("jailer_path", table.jailer_path)


def _file_daemon(table: Any) -> Iterator[Finding]:
    if table.shared_fs == "virtio-fs":
        others = [
            path for path in VIRTIOFSD_PLACES if path != table.virtio_fs_daemon and _file_fault(path) is None
        ]
        yield from _program_fault("virtio_fs_daemon", table.virtio_fs_daemon, others)


def _program_fault(key: str, path: Path, others: list[Path] | None = None) -> Iterator[Finding]:
    if wrong := _file_fault(path):
        hint = f"this host has {others[0]}" if others else "correct the path or install the program"
        yield Finding(Code.HOST_PATH, (key,), f"{path} {wrong}", hint)
    elif not os.access(path, os.X_OK):
        yield Finding(Code.HOST_EXECUTABLE, (key,), f"{path} is not executable", f"chmod +x {path}")
    yield from _writable(key, path)


def _file_fault(path: Path) -> str | None:
    """Return what is wrong with a path that must name a regular file, or None."""
    try:
        status = path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            return "does not exist"
        return f"is unusable: {(error.strerror or str(error)).lower()}"
    return None if stat.S_ISREG(status.st_mode) else "is not a regular file"


def _entropy(table: Any) -> Iterator[Finding]:
    try:
        mode = table.entropy_source.stat().st_mode
    except OSError:
        message = f"{table.entropy_source} does not exist"
        yield Finding(Code.HOST_PATH, ("entropy_source",), message, "use /dev/urandom")
        return
    if not stat.S_ISCHR(mode):
        message = f"{table.entropy_source} is no character device: the guest would read known bytes"
        yield Finding(Code.HOST_ENTROPY, ("entropy_source",), message, "use /dev/urandom")


def _kernel(table: Any) -> Iterator[Finding]:
    """Warn of a kernel that begins as none: neither as a bzImage nor as an ELF file."""
    if table.kernel is None:
        return
    try:
        with table.kernel.open("rb") as file:
            head = file.read(BZIMAGE_MAGIC_AT + len(BZIMAGE_MAGIC))
    except OSError:
        return  # that it is missing, or no file, is reported elsewhere
    if not head.startswith(ELF_MAGIC) and head[BZIMAGE_MAGIC_AT:] != BZIMAGE_MAGIC:
        message = f"{table.kernel} is no kernel: neither a bzImage nor an ELF file"
        yield Finding(Code.HOST_KERNEL, ("kernel",), message, "name a vmlinuz or vmlinux file")


def _kvm(table: Any) -> Iterator[Finding]:
    if table.needs_kvm and not KVM.exists():
        message = f"this host has no {KVM}"
        hint = "load the module kvm_intel or kvm_amd"
        key = kvm_key(table)
        if key == "accelerator":
            hint += ', or accept slow emulation with accelerator = "tcg"'
        yield Finding(Code.HOST_KVM, (key,), message, hint)


def kvm_key(table: Table) -> str:
    """The key of a hypervisor's table at which a fault of this host's KVM is reported."""
    return next(name for name in ("accelerator", "path", "kernel") if table.has_key(name))


def _compiled_filters(table: Any) -> Iterator[Finding]:
    """Warn where the kernel interprets the filter at every system call."""
    try:
        setting = JIT.read_text().strip()
    except OSError:
        return  # a kernel that always compiles, or none of ours
    if table.confined and setting == "0":
        key = "seccompsandbox" if table.has_key("seccompsandbox") else "disable_seccomp"
        message = "this host's kernel interprets seccomp filters at every system call"
        yield Finding(Code.HOST_JIT, (key,), message, "sysctl -w net.core.bpf_jit_enable=1")


def _host_cpus(key: str) -> Rule:
    def check(table: Any) -> Iterator[Finding]:
        asked, cpus = getattr(table, key), os.cpu_count() or 1
        if asked > cpus:
            message = f"{asked} is more than the {cpus} CPUs of this host"
            message += f", and becomes {cpus}" if key == "default_vcpus" else ""
            yield Finding(Code.HOST_LIMIT, (key,), message, f"write {cpus} or less")

    return Rule("hypervisor", (key,), check)


def _host_memory(key: str) -> Rule:
    def check(table: Any) -> Iterator[Finding]:
        asked = getattr(table, key)
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        if asked > installed:
            message = f"{asked} is more than the {installed} MiB of this host"
            yield Finding(Code.HOST_LIMIT, (key,), message, f"write less than {installed}")

    return Rule("hypervisor", (key,), check)


def _host_huge_pages(table: Any) -> Iterator[Finding]:
    wanted = -(-table.default_memory // 2)
    try:
        reserved = int(HUGE_PAGES.read_text(encoding="ascii"))
    except (OSError, ValueError):
        reserved = 0
    if table.enable_hugepages and reserved < wanted:
        message = f"a machine takes {wanted} huge pages of 2 MiB, this host has reserved {reserved}"
        hint = f"sysctl -w vm.nr_hugepages={wanted}, and as many more for each further pod"
        yield Finding(Code.HOST_LIMIT, ("enable_hugepages",), message, hint)


KVM = Path("/dev/kvm")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

# Source: the kernel's Documentation/arch/x86/boot.rst, header field "header"; elf(5).
BZIMAGE_MAGIC, BZIMAGE_MAGIC_AT, ELF_MAGIC = b"HdrS", 0x202, b"\x7fELF"
JIT = Path("/proc/sys/net/core/bpf_jit_enable")
VIRTIOFSD_PLACES = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))

RULES: tuple[Rule, ...] = (
    Rule("hypervisor", ("path",), _program),
    _host_file("kernel"),
    Rule("hypervisor", ("kernel",), _kernel),
    _host_file("initrd"),
    _host_file("image"),
    _host_file("firmware"),
    Rule("hypervisor", ("shared_fs", "virtio_fs_daemon"), _file_daemon),
    Rule("hypervisor", ("jailer_path",), _jailer),
    Rule("hypervisor", ("entropy_source",), _entropy),
    Rule("hypervisor", (), _kvm),
    Rule("hypervisor", ("seccompsandbox",), _compiled_filters),
    Rule("hypervisor", ("disable_seccomp",), _compiled_filters),
    _host_cpus("default_vcpus"),
    _host_cpus("default_maxvcpus"),
    _host_memory("default_memory"),
    Rule("hypervisor", ("enable_hugepages", "default_memory"), _host_huge_pages),
    _host_memory("default_maxmemory"),
)
