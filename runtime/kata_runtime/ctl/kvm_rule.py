"""The rule of configuration that needs a guest to be run: whether this host's KVM runs unmodified ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from kata_configuration.diagnostics import Code, Finding
from kata_configuration.judge.host import kvm_key
from kata_configuration.judge.rule import Rule
from kata_configuration.models import HypervisorTable, QemuHypervisor
from kata_hypervisor.host_checks import way_without_kvm
from kata_hypervisor.kvm.probe import KvmProbeResult, probe_kvm


def _check(table: HypervisorTable) -> Iterator[Finding]:
    """Warn, because a kernel that was modified for such a KVM runs on it."""
    if not table.needs_full_kvm:
        return
    found = _probe()
    if found.usable and not found.runs_unmodified_guests:
        message = f"this host's KVM runs no unmodified guests: {found.reason}"
        hint = way_without_kvm("qemu" if isinstance(table, QemuHypervisor) else "")
        yield Finding(Code.HOST_KVM_GUESTS, (kvm_key(table),), message, hint)


@functools.cache
def _probe() -> KvmProbeResult:
    return probe_kvm()


KVM_RULE = Rule("hypervisor", (), _check)
