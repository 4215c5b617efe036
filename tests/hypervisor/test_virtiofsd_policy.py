"""The policy of the filter that each thread of virtiofsd has from us."""

from __future__ import annotations

import pytest

from kata_hypervisor.driver_policy import policy_of, rules_of
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.policy import PROCESS, Rule
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import survey
from kata_hypervisor.seccomp.verify import verify_policy

NAME = "virtiofsd"


def rules() -> tuple[Rule, ...]:
    return rules_of(policy_of(NAME), NAME, PROCESS)


def test_a_thread_that_has_no_other_filter_is_held_by_it() -> None:
    found = surface_of(survey([compile_rules(rules(), actions.KILL_PROCESS).code], "x86_64"))
    assert set(found.escape) == {"chroot", "execve", "unshare"}
    assert found.gaps == ()
    assert found.allowed <= 140
    assert found.score <= 405


@pytest.mark.parametrize(
    "call",
    [
        *("socket", "connect", "bind", "fork", "vfork", "ptrace", "mount", "umount2", "setns", "pivot_root"),
        *("bpf", "keyctl", "io_uring_setup", "perf_event_open", "kill", "process_vm_writev"),
        *("open_tree", "move_mount", "fsopen", "init_module", "memfd_create", "execveat", "pidfd_getfd"),
    ],
)
def test_what_no_file_server_needs_is_in_no_rule(call: str) -> None:
    assert call not in {name for rule in rules() for name in rule.calls}


def test_file_handles_are_refused_with_an_error_that_it_understands() -> None:
    (found,) = [rule for rule in rules() if "open_by_handle_at" in rule.calls]
    assert actions.describe(found.action) == "errno EPERM"


def test_each_rule_holds_on_this_kernel() -> None:
    report = verify_policy(policy_of(NAME))
    assert report.cases
    assert [str(case) for case in report.failed] == []
