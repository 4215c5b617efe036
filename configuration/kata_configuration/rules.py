"""What single values cannot tell: keys against each other, confinement, and this host.

A rule names the keys that it reads. It is applied when none of them is at fault, so that one mistake is
reported once, also in a table that has others.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_configuration.diagnostics import Code, Finding, KeyPath, quoted
from kata_configuration.models import AGENTS, HYPERVISORS, KataAgent, QemuHypervisor, Runtime, Table
from kata_configuration.names import did_you_mean
from kata_configuration.sandbox_option import open_groups

Check = Callable[[Any], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A check of one table. Its findings' paths begin below the table."""

    keys: tuple[str, ...]
    check: Check


def apply(table: Table, path: KeyPath, faulty: frozenset[str], *, check_host: bool) -> Iterator[Finding]:
    """Yield what the rules find in a table whose keys in `faulty` hold placeholders."""
    rules = RULES[type(table)] + (HOST_RULES.get(type(table), ()) if check_host else ())
    for rule in rules:
        if faulty.isdisjoint(rule.keys):
            for found in rule.check(table):
                yield Finding(
                    found.code, (*path, *found.path), found.message, found.hint, found.on_key, found.offset
                )


def _has_root(table: QemuHypervisor) -> Iterator[Finding]:
    if table.image is None and table.initrd is None:
        yield Finding(
            Code.MISSING_KEY, ("image",), "image or initrd is required", "add one of them", on_key=True
        )


def _vcpus_fit(table: QemuHypervisor) -> Iterator[Finding]:
    if 0 < table.default_maxvcpus < table.default_vcpus:
        message = (
            f"default_vcpus = {table.default_vcpus} is more than default_maxvcpus = {table.default_maxvcpus}"
        )
        yield _relation(table, ("default_vcpus", "default_maxvcpus"), message)


def _timeouts_fit(table: KataAgent) -> Iterator[Finding]:
    reconnect, dial = table.reconnect_timeout_ms, table.dial_timeout_ms
    if reconnect < dial:
        message = f"reconnect_timeout_ms = {reconnect} is less than dial_timeout_ms = {dial}"
        yield _relation(table, ("reconnect_timeout_ms", "dial_timeout_ms"), message)


def _relation(table: Table, keys: tuple[str, str], message: str) -> Finding:
    """Blame the first key that the file sets; the other may be a default."""
    key, other = keys if keys[0] in table.model_fields_set else (keys[1], keys[0])
    return Finding(Code.RELATION, (key,), message, f"change it or {other}")


def _is_supported(key: str, known: Iterable[str]) -> Rule:
    """Demand that a key names one of the tables that exist."""

    def check(table: Table) -> Iterator[Finding]:
        name = getattr(table, key)
        if name not in known:
            yield Finding(Code.CHOICE, (key,), f"{quoted(name)} is not supported", did_you_mean(name, known))

    return Rule((key,), check)


def _is_confined(table: QemuHypervisor) -> Iterator[Finding]:
    if not table.confined:
        hint = 'write "on,..." with the groups to deny, or remove the key for all of them'
        yield Finding(Code.UNCONFINED, ("seccompsandbox",), "QEMU runs unconfined", hint)
        return
    for group, setting in open_groups(table.seccompsandbox).items():
        message = f"QEMU keeps the calls of the group {group} ({setting})"
        yield Finding(Code.WEAKENED, ("seccompsandbox",), message, f"{group}=deny closes it")


def _guest_is_confined(table: Runtime) -> Iterator[Finding]:
    if table.disable_guest_seccomp:
        message = "containers run without their seccomp profiles in the guest"
        yield Finding(Code.GUEST_UNCONFINED, ("disable_guest_seccomp",), message, "set it to false")


def _host_file(key: str) -> Rule:
    """Demand that the path of a key, when it has one, names a regular file."""

    def check(table: Table) -> Iterator[Finding]:
        path: Path | None = getattr(table, key)
        if path is not None and (wrong := _file_fault(path)):
            yield Finding(Code.HOST_PATH, (key,), f"{path} {wrong}", "correct the path or install the file")

    return Rule((key,), check)


def _program(table: QemuHypervisor) -> Iterator[Finding]:
    yield from _program_fault("path", table.path)


def _file_daemon(table: QemuHypervisor) -> Iterator[Finding]:
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


def _file_fault(path: Path) -> str | None:
    """Return what is wrong with a path that must name a regular file, or None."""
    try:
        status = path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            return "does not exist"
        return f"is unusable: {(error.strerror or str(error)).lower()}"
    return None if stat.S_ISREG(status.st_mode) else "is not a regular file"


def _entropy(table: QemuHypervisor) -> Iterator[Finding]:
    if not table.entropy_source.exists():
        message = f"{table.entropy_source} does not exist"
        yield Finding(Code.HOST_PATH, ("entropy_source",), message, "use /dev/urandom")


def _kvm(table: QemuHypervisor) -> Iterator[Finding]:
    if table.accelerator == "kvm" and not KVM.exists():
        message = f"this host has no {KVM}"
        hint = 'load the module kvm_intel or kvm_amd, or accept slow emulation with accelerator = "tcg"'
        yield Finding(Code.HOST_KVM, ("accelerator",), message, hint)


def _host_cpus(table: QemuHypervisor) -> Iterator[Finding]:
    cpus = os.cpu_count() or 1
    if table.default_vcpus > cpus:
        message = f"{table.default_vcpus} is more than the {cpus} CPUs of this host"
        yield Finding(Code.HOST_LIMIT, ("default_vcpus",), message, f"write {cpus} or less")


def _host_memory(table: QemuHypervisor) -> Iterator[Finding]:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    if table.default_memory > installed:
        message = f"{table.default_memory} is more than the {installed} MiB of this host"
        yield Finding(Code.HOST_LIMIT, ("default_memory",), message, "write less")


KVM = Path("/dev/kvm")
VIRTIOFSD_PLACES = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))

RULES: Mapping[type[Table], tuple[Rule, ...]] = {
    QemuHypervisor: (
        Rule(("image", "initrd"), _has_root),
        Rule(("default_vcpus", "default_maxvcpus"), _vcpus_fit),
        Rule(("seccompsandbox",), _is_confined),
    ),
    KataAgent: (Rule(("dial_timeout_ms", "reconnect_timeout_ms"), _timeouts_fit),),
    Runtime: (
        Rule(("disable_guest_seccomp",), _guest_is_confined),
        _is_supported("hypervisor_name", HYPERVISORS),
        _is_supported("agent_name", AGENTS),
    ),
}

HOST_RULES: Mapping[type[Table], tuple[Rule, ...]] = {
    QemuHypervisor: (
        Rule(("path",), _program),
        _host_file("kernel"),
        _host_file("initrd"),
        _host_file("image"),
        Rule(("shared_fs", "virtio_fs_daemon"), _file_daemon),
        Rule(("entropy_source",), _entropy),
        Rule(("accelerator",), _kvm),
        Rule(("default_vcpus",), _host_cpus),
        Rule(("default_memory",), _host_memory),
    ),
}
