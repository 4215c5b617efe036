"""The policy of a solo5-hvt that has no filter of its own: what it promises, and that it is enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_hypervisor.driver_policy import CHILDREN, policy_of, rules_of
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.comparison import compare
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.policy import PROCESS
from kata_hypervisor.seccomp.score import PUBLISHED, Surface, surface_of
from kata_hypervisor.seccomp.survey import survey
from kata_hypervisor.seccomp.trace_recorder import record
from kata_hypervisor.seccomp.verify import verify_policy
from old_tender import COMPILERS, build_old_tender

RUNNING = ("solo5-hvt-glibc", "solo5-hvt-musl")
LOADING = "solo5-hvt-loading"
OTHERS = {vmm.name: vmm.score for vmm in PUBLISHED}


def surface(child: str) -> Surface:
    program = compile_rules(rules_of(policy_of(child), child, PROCESS), actions.NOTIFY)
    return surface_of(survey([program.code], "x86_64"))


@pytest.mark.parametrize("child", RUNNING)
def test_once_it_has_loaded_it_has_less_than_its_successor(child: str) -> None:
    found = surface(child)
    assert (found.escape, found.gaps) == ((), ())
    assert found.allowed <= 18
    assert found.score <= 16 < OTHERS["solo5-hvt"]


def test_all_of_it_is_less_than_half_of_what_others_let_it_have() -> None:
    found = surface(LOADING)
    assert (found.escape, found.gaps) == (("execve",), ())
    assert found.score < OTHERS["urunc's list for solo5-hvt"] / 2


@pytest.mark.parametrize("child", [*RUNNING, LOADING])
def test_what_no_tender_needs_is_in_no_rule(child: str) -> None:
    calls = {call for rule in rules_of(policy_of(child), child, PROCESS) for call in rule.calls}
    for call in ("socket", "connect", "clone", "clone3", "fork", "ptrace", "mount", "setns", "bpf", "prctl"):
        assert call not in calls


@pytest.mark.parametrize("child", RUNNING)
def test_once_it_has_loaded_it_opens_and_maps_nothing_executable(child: str) -> None:
    rules = rules_of(policy_of(child), child, PROCESS)
    calls = {call for rule in rules for call in rule.calls}
    assert calls & {"open", "openat", "execve", "mprotect", "read", "close"} == set()
    (memory,) = [rule.conditions for rule in rules if "mmap" in rule.calls]
    assert not any(condition.allows(4) for condition in memory if condition.index == 2)


def test_nothing_is_mapped_writable_and_executable() -> None:
    rules = rules_of(policy_of(LOADING), LOADING, PROCESS)
    for rule in rules:
        if {"mmap", "mprotect"} & set(rule.calls):
            (protection,) = [condition for condition in rule.conditions if condition.index == 2]
            assert not protection.allows(7)
            assert not protection.allows(6)


@pytest.mark.parametrize("child", CHILDREN)
def test_the_kernel_does_what_it_says(child: str) -> None:
    report = verify_policy(policy_of(child), CHILDREN[child][1])
    assert report.cases
    assert [str(case) for case in report.failed] == []


@pytest.mark.parametrize("kind", COMPILERS)
def test_a_trace_has_nothing_that_is_missing_in_it(tmp_path: Path, kind: str) -> None:
    tender = build_old_tender(tmp_path, kind)
    script = f'exec 4<{tender}; exec "$0" "$@"'
    trace, _ = record(["/bin/sh", "-c", script, str(tender), "exit 7"])
    assert trace.status == 7
    seen = trace.of(program=tender.name)
    assert len(seen.calls) > 5
    assert compare(seen, rules_of(policy_of(LOADING), LOADING, PROCESS)).missing == ()
