"""Whether this host's kernel does what the policy says: every rule tried, and what sealing needs looked up.

report = verify_policy(load_policy())
checks = check_host()
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import actions, kernel_probe, notification
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules, library_version
from kata_hypervisor.seccomp.policy import PROCESS, VCPU, Policy
from kata_hypervisor.seccomp.program import Program

_JIT = Path("/proc/sys/net/core/bpf_jit_enable")
_LOGGED = Path("/proc/sys/kernel/seccomp/actions_logged")


@dataclass(frozen=True, slots=True)
class Case:
    """One call that was tried.

    rule: the number of its rule in the policy, 0 for a call that is in none. thread: PROCESS or VCPU. what:
    the arguments, as text. expected: "passes", "refused", "killed" or "errno NAME". got: what the kernel did.
    """

    rule: int
    call: str
    thread: str
    what: str
    expected: str
    got: str

    @property
    def ok(self) -> bool:
        """Whether the kernel did what was expected."""
        if self.expected == kernel_probe.PASSES:
            return self.got not in (kernel_probe.REFUSED, kernel_probe.KILLED)
        return self.got == self.expected

    def __str__(self) -> str:
        rule = f"rule {self.rule}, " if self.rule else ""
        return f"{rule}{self.call} on {self.thread} ({self.what}): expected {self.expected}, got: {self.got}"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of every case of a policy. skipped: calls that this host lacks."""

    policy: Policy
    cases: tuple[Case, ...]
    skipped: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Case, ...]:
        """Those that went otherwise than expected."""
        return tuple(case for case in self.cases if not case.ok)

    @property
    def ok(self) -> bool:
        """Whether all went as expected."""
        return not self.failed


def verify_policy(policy: Policy, features: Collection[str] | None = None) -> Report:
    """Try every rule for these features (all, by default) in child processes; takes a second or two.

    Raises:
        PolicyError, SealError: the policy cannot be compiled or installed.
    """
    policy = policy.bind(pid=os.getpid())
    wanted = policy.features if features is None else frozenset(features)
    process = compile_rules(policy.select(wanted, PROCESS), actions.NOTIFY)
    cases = _try(policy, wanted, PROCESS, process, [(process.code, actions.NOTIFY)])
    skipped = process.skipped
    if "vcpu" in wanted:
        vcpu = compile_rules(policy.select(wanted, VCPU), actions.KILL_PROCESS)
        stacked = [(process.code, actions.NOTIFY), (vcpu.code, actions.KILL_PROCESS)]
        cases += _try(policy, wanted, VCPU, vcpu, stacked)
        skipped += vcpu.skipped
    return Report(policy, tuple(cases), tuple(dict.fromkeys(skipped)))


def _try(
    policy: Policy,
    features: Collection[str],
    thread: str,
    program: Program,
    stacked: list[tuple[bytes, int]],
) -> list[Case]:
    probes = [
        probe
        for probe in kernel_probe.probes_of(policy.select(features, thread), policy.architecture)
        if probe.call not in program.skipped
    ]
    outcomes = kernel_probe.try_programs(stacked, probes)
    cases = [
        Case(probe.rule, probe.call, thread, probe.what, probe.expected, got)
        for probe, got in zip(probes, outcomes, strict=True)
    ]
    if policy.architecture == "x86_64" and (got := kernel_probe.try_foreign_call(stacked)) is not None:
        cases.append(Case(0, "getpid of i386", thread, "a foreign call", kernel_probe.KILLED, got))
    return cases


@dataclass(frozen=True, slots=True)
class HostCheck:
    """One thing that sealing needs of the host. advice: what to do about it, where it is not ok.

    needed: whether nothing can be sealed without it.
    """

    name: str
    ok: bool
    found: str
    needed: bool = True
    advice: str = ""


def check_host() -> list[HostCheck]:
    """Look up all that sealing needs; nothing raises."""
    return [
        HostCheck("kernel", True, os.uname().release),
        *(_check_action(action) for action in (actions.KILL_PROCESS, actions.ERRNO, actions.NOTIFY)),
        _check_action(actions.LOG, needed=False),
        _check_notifications(),
        _check_library(),
        _check_jit(),
        _check_audit(),
    ]


def _check_action(action: int, *, needed: bool = True) -> HostCheck:
    name = f"seccomp action {actions.describe(action).split()[0]}"
    try:
        available = kernel.action_available(action)
    except SealError as error:
        return HostCheck(name, False, str(error), needed, "use a kernel with CONFIG_SECCOMP_FILTER")
    if available:
        return HostCheck(name, True, "available", needed)
    return HostCheck(name, False, "unknown to this kernel", needed, "use Linux 5.7 or later")


def _check_notifications() -> HostCheck:
    sizes = kernel.notification_sizes()
    if sizes is None:
        return HostCheck("notifications", False, "none", advice="use Linux 5.7 or later")
    advice = "" if sizes == notification.SIZES else f"this runtime knows those of {notification.SIZES} bytes"
    return HostCheck("notifications", not advice, "{} + {} + {} bytes".format(*sizes), advice=advice)


def _check_library() -> HostCheck:
    try:
        version = library_version()
    except SealError as error:
        return HostCheck("libseccomp", False, str(error), advice="install the package libseccomp2")
    found = ".".join(map(str, version))
    if version < (2, 5, 0):
        return HostCheck(
            "libseccomp", False, found, advice="install 2.5.0 or later, which knows notifications"
        )
    return HostCheck("libseccomp", True, found)


def _check_jit() -> HostCheck:
    advice = f"echo 1 > {_JIT}: without it each call of a sealed process costs more"
    try:
        enabled = _JIT.read_text().strip() != "0"
    except OSError as error:
        return HostCheck("BPF JIT", False, error.strerror or "unknown", needed=False, advice=advice)
    return HostCheck("BPF JIT", enabled, "on" if enabled else "off", False, "" if enabled else advice)


def _check_audit() -> HostCheck:
    """KILL_PROCESS and LOG are how the kernel itself reports a virtual CPU's violation."""
    try:
        logged = _LOGGED.read_text().split()
    except OSError as error:
        return HostCheck("seccomp audit", False, error.strerror or "unknown", needed=False)
    missing = [name for name in ("kill_process", "log") if name not in logged]
    advice = f"add {' and '.join(missing)} to {_LOGGED}" if missing else ""
    return HostCheck("seccomp audit", not missing, " ".join(logged), False, advice)
