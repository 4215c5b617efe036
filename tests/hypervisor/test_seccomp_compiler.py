"""From rules to a program: what libseccomp makes of them, and what it does not know or refuses."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_hypervisor.errors import PolicyError, SealError
from kata_hypervisor.seccomp import actions, bpf, compiler, syscalls
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.policy import PROCESS, Condition, Rule, load_policy

ARCH = "x86_64"
WORD = (1 << 64) - 1


def answer(code: bytes, call: str, *arguments: int, arch: str = ARCH) -> int:
    """What a program answers to a call."""
    number = syscalls.number_of(call, arch)
    assert number is not None
    return run(code, number, arguments, arch)


def run(code: bytes, number: int, arguments: Sequence[int] = (), arch: str = ARCH) -> int:
    registers = tuple(arguments) + (0,) * (6 - len(arguments))
    return bpf.run(code, bpf.SeccompData(number, bpf.AUDIT_ARCH[arch], 0, registers))


def test_calls_are_allowed_answered_or_left_to_the_default() -> None:
    rules = [Rule(("read", "write")), Rule(("clone3",), action=actions.errno(38))]
    code = compile_rules(rules, actions.NOTIFY, arch=ARCH).code
    assert answer(code, "read") == answer(code, "write") == actions.ALLOW
    assert answer(code, "clone3") == actions.errno(38)
    assert answer(code, "openat") == actions.NOTIFY


def test_foreign_calls_kill_the_process() -> None:
    code = compile_rules([Rule(("read",))], actions.NOTIFY, arch=ARCH).code
    read = syscalls.number_of("read")
    assert read is not None
    assert run(code, read | 0x40000000) == actions.KILL_PROCESS
    assert run(code, 3, arch="i386") == actions.KILL_PROCESS
    assert run(code, read, arch="aarch64") == actions.KILL_PROCESS


def test_another_architectures_program() -> None:
    program = compile_rules([Rule(("open", "openat", "read"))], actions.NOTIFY, arch="aarch64")
    assert program.skipped == ("open",)
    assert answer(program.code, "read", arch="aarch64") == actions.ALLOW
    assert answer(program.code, "openat", arch="aarch64") == actions.ALLOW
    assert answer(program.code, "close", arch="aarch64") == actions.NOTIFY
    assert answer(program.code, "read") == actions.KILL_PROCESS


def test_calls_that_libseccomp_has_never_heard_of() -> None:
    library = compiler.load_library()
    new = [name for name in syscalls.numbers() if library.resolve_syscall(library.Arch.NATIVE, name) < 0]
    if not new:
        pytest.skip("this libseccomp knows every call of our table")
    program = compile_rules([Rule((new[-1],))], actions.NOTIFY, arch=ARCH)
    assert program.skipped == ()
    assert answer(program.code, new[-1]) == actions.ALLOW


def test_calls_that_libseccomp_does_not_know_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiler.load_library()
    number = syscalls.number_of("file_setattr")

    class Old(library.SyscallFilter):  # type: ignore[misc, name-defined]
        def add_rule_exactly(self, action: int, call: int, *arguments: object) -> None:
            if call == number:
                raise OSError(33, "Numerical argument out of domain")
            super().add_rule_exactly(action, call, *arguments)

    monkeypatch.setattr(library, "SyscallFilter", Old)
    monkeypatch.setattr(library, "resolve_syscall", lambda arch, name: -1 if name == "file_setattr" else 0)
    program = compile_rules([Rule(("read", "file_setattr"))], actions.NOTIFY, arch=ARCH)
    assert program.skipped == ("file_setattr",)
    assert answer(program.code, "read") == actions.ALLOW
    assert answer(program.code, "file_setattr") == actions.NOTIFY


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "there is no rule to compile: a filter without rules is refused"),
        ([Rule(("raed",))], "there is no system call 'raed'"),
        ([Rule(("read",), action=actions.NOTIFY, number=3)], r"rule 3 \(read\) has the default action"),
        ([Rule(("read",), (Condition(0, "eq", "$pid"),))], r"the value of \$pid is not known"),
        (
            [Rule(("read",), (Condition(0, "ge", 1), Condition(0, "le", 2)), number=4)],
            "libseccomp refuses rule 4, read when argument 0 >= 1 and argument 0 <= 2",
        ),
        (
            [Rule(("read",), (Condition(0, "ge", 4),)), Rule(("read",), (Condition(1, "ne", 1),), number=2)],
            "libseccomp cannot be trusted with a comparison in one of several rules",
        ),
    ],
)
def test_rules_that_cannot_be_compiled(rules: list[Rule], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        compile_rules(rules, actions.NOTIFY, arch=ARCH)


def test_an_unknown_default_action() -> None:
    with pytest.raises(SealError, match="cannot build a seccomp filter: libseccomp says"):
        compile_rules([Rule(("read",))], 0x12340000, arch=ARCH)


# -- libseccomp itself -------------------------------------------------------------------------------------


def test_missing_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ctypes.CDLL

    def without(name: str | None, **options: object) -> ctypes.CDLL:
        if name and "seccomp" in name:
            raise OSError(f"{name}: cannot open shared object file")
        return load(name)

    compiler.load_library.cache_clear()
    monkeypatch.delitem(sys.modules, "pyseccomp", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", without)
    with pytest.raises(SealError, match=r"cannot open shared object file \(install libseccomp 2.5 or later"):
        compile_rules([Rule(("read",))], actions.NOTIFY, arch=ARCH)
    monkeypatch.undo()
    compiler.load_library.cache_clear()
    assert compile_rules([Rule(("read",))], actions.NOTIFY, arch=ARCH).code


def test_the_library_is_loaded_without_a_fork_and_the_search_stays_as_it_was() -> None:
    script = """
import ctypes.util, sys
before = ctypes.util.find_library
started = []
sys.addaudithook(lambda event, _: started.append(event) if event in ("subprocess.Popen", "os.fork") else None)
from kata_hypervisor.seccomp.compiler import load_library, library_version
load_library()
assert library_version() >= (2, 5, 0), library_version()
assert not started, started
assert ctypes.util.find_library is before
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)


# -- programs do what rules say ----------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [True, False])
def test_both_orders_of_the_shipped_policy_answer_alike(tree: bool) -> None:
    policy = load_policy(ARCH).bind(pid=4242)
    rules = policy.select(policy.features, PROCESS)
    code = compile_rules(
        rules, actions.NOTIFY, arch=ARCH, tree=tree, frequent=() if tree else ("splice",)
    ).code
    for call in syscalls.numbers(ARCH):
        for arguments in ((0,) * 6, (1, 0x5421, 3, 0x22, 0, 0), (4242, 1, 0, 1, 0, 0), (WORD,) * 6):
            assert answer(code, call, *arguments) == model(rules, call, arguments), (call, arguments)


def model(rules: Sequence[Rule], call: str, arguments: Sequence[int], default: int = actions.NOTIFY) -> int:
    """What rules mean, read one by one."""
    for rule in rules:
        if call in rule.calls and all(c.allows(arguments[c.index]) for c in rule.conditions):
            return rule.action
    return default


CALLS = ("ioctl", "futex", "mmap")
_WORDS = st.one_of(st.integers(0, 8), st.sampled_from([0xFFFFFFFF, 1 << 32, (1 << 32) + 1, 1 << 63, WORD]))


@st.composite
def _condition(draw: st.DrawFn, index: int, ops: Sequence[str]) -> Condition:
    op = draw(st.sampled_from(ops))
    value = draw(_WORDS)
    if op != "masked":
        return Condition(index, op, value)
    mask = draw(_WORDS.filter(bool))
    return Condition(index, op, value & mask, mask)


@st.composite
def _rule(draw: st.DrawFn, ops: Sequence[str]) -> Rule:
    indices = draw(st.lists(st.integers(0, 2), unique=True, min_size=1, max_size=2))
    calls = draw(st.lists(st.sampled_from(CALLS), unique=True, min_size=1))
    return Rule(tuple(calls), tuple(draw(_condition(index, ops)) for index in indices))


_RULES = st.one_of(
    st.lists(_rule(["eq", "masked"]), min_size=1, max_size=4),
    st.lists(_rule(["eq", "ne", "lt", "le", "gt", "ge", "masked"]), min_size=1, max_size=1),
)


@settings(deadline=None)
@given(_RULES, st.lists(st.tuples(_WORDS, _WORDS, _WORDS), max_size=8))
def test_a_program_answers_as_its_rules_say(rules: list[Rule], calls: list[tuple[int, int, int]]) -> None:
    rules = [replace(rule, number=number) for number, rule in enumerate(rules)]
    codes = [compile_rules(rules, actions.NOTIFY, arch=ARCH, tree=tree).code for tree in (True, False)]
    for code in codes:
        for arguments in [*calls, (0, 0, 0)]:
            for call in (*CALLS, "read"):
                assert answer(code, call, *arguments) == model(rules, call, arguments)
