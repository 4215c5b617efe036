"""Refusals with an errno that names the call: what a program answers then, and what the kernel does."""

from __future__ import annotations

import errno
import os

import pytest

from forked import in_child
from kata_hypervisor.seccomp import actions, bpf
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.named_refusal import UNNAMED, name_refusals, refused_call
from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.seccomp.seal import build_broker
from kata_hypervisor.seccomp.survey import survey
from kata_hypervisor.seccomp.syscalls import native, numbers

RULES = (
    Rule(("read", "write")),
    Rule(("kill",), (Condition(1, "eq", 0),)),
    Rule(("clone3",), action=actions.errno(errno.ENOSYS)),
)


def test_each_refusal_names_its_call_and_all_else_is_as_before() -> None:
    plain = compile_rules(RULES, UNNAMED).code
    named = name_refusals(plain)
    arch = bpf.AUDIT_ARCH[native()]
    for name, number in numbers(native()).items():
        for arguments in ((0,) * 6, (1,) * 6):
            call = bpf.SeccompData(number, arch, 0, arguments)
            before, after = bpf.run(plain, call), bpf.run(named, call)
            if before != UNNAMED:
                assert after == before
            else:
                assert after & 0xFFFF0000 == actions.ERRNO
                assert refused_call(after & 0xFFFF) == f"{name} ({number})"


@pytest.mark.parametrize("foreign", [0x40000000, 0x40000101])
def test_foreign_calls_end_the_process(foreign: int) -> None:
    named = name_refusals(compile_rules(RULES, UNNAMED).code)
    for call in (
        bpf.SeccompData(foreign, bpf.AUDIT_ARCH["x86_64"]),
        bpf.SeccompData(20, bpf.AUDIT_ARCH["i386"]),
    ):
        assert bpf.run(named, call) == actions.KILL_PROCESS


@pytest.mark.parametrize("number", [None, 0, 1, errno.EPERM, 524, 0x7FF, 0x1000])
def test_other_errors_name_nothing(number: int | None) -> None:
    assert refused_call(number) == ""


def test_a_number_without_a_name_is_reported_too() -> None:
    assert refused_call(0x800 | 0x7FF) == "an unknown call (2047)"


def test_the_kernel_takes_it() -> None:
    def provoke() -> int:
        allowed = tuple(name for name in numbers(native()) if name != "getpgid")
        kernel.install(
            name_refusals(compile_rules((Rule(allowed),), UNNAMED).code), all_threads=False, listener=False
        )
        try:
            os.getpgid(0)
        except OSError as error:
            return error.errno or 0
        return 0

    assert refused_call(in_child(provoke)) == f"getpgid ({numbers(native())['getpgid']})"


def test_a_brokers_program_is_one_that_a_survey_can_read() -> None:
    found = survey([build_broker((), "enforce", 77).code])
    assert found.gaps == ()
    assert "execve" not in found.allowed
    assert "mount" in found.allowed
