"""The kernel probe: every rule of the policy, asked of this kernel; and that it notices what is broken."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import actions, kernel_probe, syscalls, verify
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.kernel_probe import KILLED, PASSES, REFUSED, Probe
from kata_hypervisor.seccomp.policy import PROCESS, THREADS, VCPU, Condition, Policy, Rule, load_policy
from kata_hypervisor.seccomp.seal import SHIM_FEATURES

NATIVE = syscalls.native()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy()


@pytest.fixture(scope="module")
def report(policy: Policy) -> verify.Report:
    return verify.verify_policy(policy)


def test_the_kernel_does_what_the_policy_says(report: verify.Report) -> None:
    assert [str(case) for case in report.failed] == []
    assert report.ok
    assert report.skipped == ()


@pytest.mark.parametrize("driver", [{"serial"}, {"vcpu", "threads", "block"}, {"vcpu", "fs", "vhost-net"}])
def test_also_for_some_of_its_features(policy: Policy, driver: set[str]) -> None:
    assert verify.verify_policy(policy, SHIM_FEATURES | driver).ok


@pytest.mark.parametrize("thread", THREADS)
def test_every_call_of_every_rule_is_tried(report: verify.Report, policy: Policy, thread: str) -> None:
    tried = {
        (case.rule, case.call) for case in report.cases if case.thread == thread and case.expected != REFUSED
    }
    rules = [rule for rule in policy.rules if thread in rule.threads]
    assert {(rule.number, call) for rule in rules for call in rule.calls} <= tried


def test_every_condition_is_missed_at_least_once(report: verify.Report, policy: Policy) -> None:
    missed = {case.rule for case in report.cases if case.rule and case.expected == REFUSED}
    assert {rule.number for rule in policy.rules if rule.conditions} <= missed


@pytest.mark.parametrize("thread", THREADS)
def test_every_other_call_is_tried(report: verify.Report, policy: Policy, thread: str) -> None:
    named = {call for rule in policy.rules if thread in rule.threads for call in rule.calls}
    refused = {case.call for case in report.cases if case.thread == thread and not case.rule}
    assert set(syscalls.numbers(NATIVE)) - named <= refused | {"uprobe", "uretprobe"}
    if thread == PROCESS:
        assert {"execve", "mount", "setns", "ptrace", "io_uring_setup", "bpf", "fork", "openat"} <= refused


# -- what is broken is noticed -----------------------------------------------------------------------------


def altered(policy: Policy, number: int, rule: Rule) -> Policy:
    return replace(policy, rules=tuple(rule if r.number == number else r for r in policy.rules))


def failures(policy: Policy, wrong: Policy, thread: str = PROCESS) -> set[tuple[int, str]]:
    """Rules and calls that fail when a program of one policy is asked whether it keeps another."""
    bound = [p.bind(pid=os.getpid()).select(p.features, thread) for p in (policy, wrong)]
    code = compile_rules(bound[1], actions.NOTIFY).code
    probes = list(kernel_probe.probes_of(bound[0], NATIVE))
    outcomes = kernel_probe.try_programs([(code, actions.NOTIFY)], probes)
    cases = [
        verify.Case(probe.rule, probe.call, thread, probe.what, probe.expected, got)
        for probe, got in zip(probes, outcomes, strict=True)
    ]
    return {(case.rule, case.call) for case in cases if not case.ok}


@pytest.mark.parametrize(
    "call", ["getpid", "ioctl", "tgkill", "exit_group", "rt_sigreturn", "mmap", "clone3"]
)
def test_a_rule_that_is_missing_is_named(policy: Policy, call: str) -> None:
    rule = next(rule for rule in policy.rules if call in rule.calls)
    without = replace(policy, rules=tuple(r for r in policy.rules if r.number != rule.number))
    assert failures(policy, without) >= {(rule.number, call)}
    assert {number for number, _ in failures(policy, without)} == {rule.number}


@pytest.mark.parametrize("call", ["tgkill", "mremap", "clone", "mprotect"])
def test_a_condition_that_is_missing_is_named(policy: Policy, call: str) -> None:
    rule = next(rule for rule in policy.rules if call in rule.calls)
    # What clone makes of wrong flags may end the child a little later, in another probe.
    found = failures(policy, altered(policy, rule.number, replace(rule, conditions=())))
    assert (rule.number, call) in found
    assert call == "clone" or len(found) == 1


def test_one_bit_that_is_too_much_is_named(policy: Policy) -> None:
    rule = next(rule for rule in policy.rules if "mmap" in rule.calls)
    protection, flags = rule.conditions
    assert protection.mask is not None
    loose = replace(rule, conditions=(replace(protection, mask=protection.mask & ~4), flags))
    assert failures(policy, altered(policy, rule.number, loose)) == {(rule.number, "mmap")}


def test_a_call_that_is_too_much_is_named(policy: Policy) -> None:
    loose = replace(policy, rules=(*policy.rules, Rule(("execve", "setsid"), features=frozenset({"base"}))))
    assert failures(policy, loose) == {(0, "execve"), (0, "setsid")}


def test_a_wrong_errno_is_named(policy: Policy) -> None:
    rule = next(rule for rule in policy.rules if "clone3" in rule.calls)
    wrong = replace(rule, action=actions.errno(1))
    assert failures(policy, altered(policy, rule.number, wrong)) == {(rule.number, "clone3")}


# -- single probes -----------------------------------------------------------------------------------------


def outcome(rules: list[Rule], call: str, *arguments: int) -> str:
    number = syscalls.number_of(call, NATIVE)
    assert number is not None
    padded = arguments + (kernel_probe._NOTHING,) * (6 - len(arguments))
    code = compile_rules(rules, actions.NOTIFY).code
    (found,) = kernel_probe.try_programs(
        [(code, actions.NOTIFY)], [Probe(1, call, number, padded, "", PASSES)]
    )
    return found


def test_outcomes_in_words() -> None:
    rules = [
        Rule(("read", "exit_group", "getpid", "rt_sigreturn")),
        Rule(("prctl",), action=actions.errno(1)),
    ]
    assert outcome(rules, "read") == "errno EBADF"
    assert outcome(rules, "write") == REFUSED
    assert outcome(rules, "prctl") == "errno EPERM"
    assert outcome(rules, "exit_group", 7) == "ended with status 7"
    assert outcome(rules, "getpid").startswith("returned ")
    assert outcome(rules, "rt_sigreturn") == "ended by SIGSEGV"


def test_a_call_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_probe, "_PATIENCE", 1)
    assert outcome([Rule(("pause",))], "pause") == "ended by SIGALRM"


def test_every_probe_after_one_that_ends_is_made() -> None:
    code = compile_rules([Rule(("exit", "exit_group"))], actions.NOTIFY).code
    numbers = syscalls.numbers(NATIVE)
    calls = ["exit", "read", "exit_group", "exit", "write"]
    probes = [Probe(0, call, numbers[call], (3,) * 6, "", "") for call in calls]
    found = kernel_probe.try_programs([(code, actions.NOTIFY)], probes)
    assert found == ["ended with status 3", REFUSED, "ended with status 3", "ended with status 3", REFUSED]


def test_foreign_calls_are_killed_and_not_only_refused() -> None:
    if NATIVE != "x86_64":
        pytest.skip("x86_64 alone has foreign calls of its own")
    code = compile_rules([Rule(("exit_group",))], actions.NOTIFY).code
    assert kernel_probe.try_foreign_call([(code, actions.NOTIFY)]) in (KILLED, None)
    allow = struct.pack("<HBBI", 6, 0, 0, actions.ALLOW)
    assert kernel_probe.try_foreign_call([(allow, actions.NOTIFY)]) in ("ended with status 0", None)


def test_a_program_that_cannot_be_installed() -> None:
    with pytest.raises(SealError, match="cannot install the seccomp filter: Invalid argument"):
        kernel_probe.try_programs(
            [(b"\xff" * 8, actions.NOTIFY)], [Probe(0, "read", 0, (0,) * 6, "", PASSES)]
        )


def test_conditions_of_every_kind_are_missed() -> None:
    for op in ("eq", "ne", "lt", "le", "gt", "ge"):
        rule = Rule(("ioctl",), (Condition(1, op, 5),), number=1)
        expected = [probe.expected for probe in kernel_probe.probes_of([rule], NATIVE) if probe.rule]
        assert {PASSES, REFUSED} == set(expected), op


# -- the host ----------------------------------------------------------------------------------------------


def test_this_host_has_what_is_needed() -> None:
    checks = {check.name: check for check in verify.check_host()}
    assert {"kernel", "libseccomp", "notifications", "BPF JIT", "seccomp action notify"} <= set(checks)
    assert [str(check) for check in checks.values() if check.needed and not check.ok] == []


def test_a_host_that_lacks_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    def missing() -> tuple[int, int, int]:
        raise SealError("no libseccomp")

    def unknown(action: int) -> bool:
        if action == actions.LOG:
            raise SealError("no seccomp")
        return False

    off = os.path.join(tmp_path, "jit")
    with open(off, "w", encoding="ascii") as file:
        file.write("0\n")
    monkeypatch.setattr(verify, "library_version", missing)
    monkeypatch.setattr(kernel, "action_available", unknown)
    monkeypatch.setattr(kernel, "notification_sizes", lambda: None)
    monkeypatch.setattr(verify, "_JIT", Path(off))
    monkeypatch.setattr(verify, "_LOGGED", Path(off))
    checks = {check.name: check for check in verify.check_host()}
    assert not any(check.ok for name, check in checks.items() if name != "kernel")
    assert all(check.advice for name, check in checks.items() if name != "kernel")
    assert not checks["BPF JIT"].needed
    monkeypatch.setattr(verify, "_JIT", Path(off + ".none"))
    assert {check.name: check for check in verify.check_host()}[
        "BPF JIT"
    ].found == "No such file or directory"


def test_an_old_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "library_version", lambda: (2, 4, 4))
    monkeypatch.setattr(kernel, "notification_sizes", lambda: (80, 24, 72))
    checks = {check.name: check for check in verify.check_host()}
    assert "install 2.5.0 or later" in checks["libseccomp"].advice
    assert "of (80, 24, 64) bytes" in checks["notifications"].advice


def test_the_vcpu_filter_is_tried_on_top_of_the_other(report: verify.Report) -> None:
    refused = {case.call for case in report.cases if case.thread == VCPU and case.expected == REFUSED}
    assert {"close", "getpid", "accept4"} <= refused
