"""Policies as files: the shipped one, and everything that can be wrong with one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp import policy as policy_module
from kata_hypervisor.seccomp.policy import (
    BASE,
    PROCESS,
    THREADS,
    VCPU,
    Condition,
    load_policy,
    parse_policy,
)
from kata_hypervisor.seccomp.score import ESCAPE
from kata_hypervisor.seccomp.seal import SHIM_FEATURES

HEAD = 'architecture = "x86_64"\n[constants]\nA = 1\nB = 2\nBIG = 0x100000000\n'


def rule(text: str = "", **fields: str) -> str:
    """One [[rule]] with valid fields, except these; text is added as it stands."""
    valid = {"calls": '["ioctl"]', "reason": '"why"', "features": '["base"]'}
    lines = [f"{key} = {value}" for key, value in (valid | fields).items() if value]
    return "\n".join(["[[rule]]", *lines, text, ""])


def when(*conditions: str, **fields: str) -> str:
    return rule(when="[" + ", ".join(f"{{ {condition} }}" for condition in conditions) + "]", **fields)


# -- the shipped policy ----------------------------------------------------------------------------------


def allowed(thread: str, features: set[str] | None = None) -> set[str]:
    chosen = [rule for rule in load_policy("x86_64").rules if thread in rule.threads]
    if features is not None:
        chosen = [rule for rule in chosen if rule.features & features]
    return {call for rule in chosen if rule.action == actions.ALLOW for call in rule.calls}


def test_the_shipped_policy_is_small() -> None:
    assert len(allowed(PROCESS)) <= 40
    assert len(allowed(VCPU, {"vcpu", "base"})) <= 12
    assert len(allowed(VCPU, {"vcpu", "base", "unikernel"})) <= 17


@pytest.mark.parametrize("thread", THREADS)
def test_the_shipped_policy_opens_no_way_out(thread: str) -> None:
    forbidden = {
        "open",
        "openat",
        "openat2",
        "creat",
        "fork",
        "vfork",
        "clone3",
        "bind",
        "kill",
        "memfd_create",
    }
    assert not allowed(thread) & (ESCAPE | forbidden)
    assert not [call for call in allowed(thread) if call.startswith("io_uring")]


@pytest.mark.parametrize(
    "call", ["ioctl", "mmap", "mprotect", "mremap", "clone", "socketpair", "seccomp", "tgkill"]
)
def test_calls_that_their_arguments_decide_have_conditions(call: str) -> None:
    rules = [rule for rule in load_policy("x86_64").rules if call in rule.calls]
    assert rules
    assert all(rule.conditions for rule in rules)


def test_memory_is_never_executable() -> None:
    for rule in load_policy("x86_64").rules:
        if {"mmap", "mprotect"} & set(rule.calls):
            protection = next(condition for condition in rule.conditions if condition.index == 2)
            assert protection.allows(3)
            assert not any(protection.allows(bits | 4) for bits in range(4))


def test_clone_makes_threads_only() -> None:
    ((condition,),) = [rule.conditions for rule in load_policy("x86_64").rules if "clone" in rule.calls]
    thread = 0x3D0F00
    assert condition.allows(thread)
    assert condition.allows(thread | 0x400000)
    for namespace in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert not condition.allows(thread | namespace)
    assert not condition.allows(thread & ~0x10000)
    assert not condition.allows(17)


def test_no_filter_with_a_listener_can_be_added() -> None:
    for rule in load_policy("x86_64").rules:
        if "seccomp" in rule.calls:
            flags = next(condition for condition in rule.conditions if condition.index == 1)
            assert flags.allows(0)
            assert not any(flags.allows(flag) for flag in range(1, 64))


def test_a_shim_has_what_it_needs_and_no_machines_calls() -> None:
    policy = load_policy("x86_64")
    assert policy.features >= SHIM_FEATURES
    calls = {call for rule in policy.select(SHIM_FEATURES) for call in rule.calls}
    assert {"accept4", "splice", "recvmsg", "exit_group"} <= calls
    assert not {"seccomp", "preadv2", "clone"} & calls


def test_the_shipped_policy_names_no_constant_in_vain() -> None:
    text = (Path(policy_module.__file__).parent / "policies" / "x86_64.toml").read_text()
    for name in tomli.loads(text)["constants"]:
        assert len(re.findall(rf"\b{name}\b", text)) > 1, name


def test_the_policy_of_an_architecture_without_one() -> None:
    with pytest.raises(PolicyError, match="there is no seccomp policy for vax"):
        load_policy("vax")


# -- selecting and binding -------------------------------------------------------------------------------


def test_select_takes_base_and_the_features_asked_for() -> None:
    text = (
        HEAD
        + rule()
        + rule(calls='["read"]', features='["block", "fs"]')
        + rule(calls='["write"]', features='["fs"]')
    )
    policy = parse_policy(text, "p.toml")
    assert [rule.calls for rule in policy.select(())] == [("ioctl",)]
    assert [rule.calls for rule in policy.select({"block"})] == [("ioctl",), ("read",)]
    assert [rule.number for rule in policy.select({"fs", BASE})] == [1, 2, 3]
    with pytest.raises(PolicyError, match=r"p\.toml has no feature nets: there are base, block, fs"):
        policy.select({"nets"})
    with pytest.raises(PolicyError, match="no threads 'io'"):
        policy.select((), "io")
    with pytest.raises(PolicyError, match="no rule for base on threads vcpu"):
        policy.select((), VCPU)


def test_values_that_are_bound_later() -> None:
    policy = parse_policy(HEAD + when('arg = 0, op = "eq", value = "$pid", bits = 32'), "p.toml")
    (condition,) = policy.rules[0].conditions
    with pytest.raises(PolicyError, match=r"\$pid is not known"):
        condition.allows(5)
    (condition,) = policy.bind(pid=7, other=1).rules[0].conditions
    assert condition.allows(7)
    assert not condition.allows(8)
    assert str(condition) == "argument 0 == $pid"


def test_one_of_several_values_makes_as_many_rules() -> None:
    policy = parse_policy(HEAD + when('arg = 1, op = "in", value = ["A", "B", 9]'), "p.toml")
    assert [rule.when for rule in policy.rules] == ["argument 1 == A", "argument 1 == B", "argument 1 == 9"]
    assert {rule.number for rule in policy.rules} == {1}


@pytest.mark.parametrize(
    ("condition", "inside", "outside"),
    [
        ('op = "eq", value = "BIG"', [1 << 32], [0, 1]),
        ('op = "eq", value = "A", bits = 32', [1, 1 << 32 | 1], [0, 2]),
        ('op = "ne", value = 3', [2, 4], [3]),
        ('op = "lt", value = 3', [0, 2], [3, 4]),
        ('op = "le", value = 3', [3], [4]),
        ('op = "gt", value = 3', [4, (1 << 64) - 1], [3]),
        ('op = "ge", value = 3', [3], [2]),
        ('op = "masked", mask = "A|B", value = "B"', [2, 6], [0, 1, 3]),
        ('op = "masked", mask = "~A", value = "B"', [2, 3], [0, 6, 1 << 40 | 2]),
        ('op = "masked", mask = "~A", value = "B", bits = 32', [2, 3, 1 << 40 | 2], [0, 6]),
    ],
)
def test_what_conditions_allow(condition: str, inside: list[int], outside: list[int]) -> None:
    (parsed,) = parse_policy(HEAD + when(f"arg = 0, {condition}"), "p.toml").rules[0].conditions
    assert [parsed.allows(word) for word in inside] == [True] * len(inside)
    assert [parsed.allows(word) for word in outside] == [False] * len(outside)


def test_conditions_as_people_read_them() -> None:
    assert str(Condition(1, "masked", 0, 4)) == "argument 1 & 4 == 0"
    assert str(Condition(1, "le", 0x5421)) == "argument 1 <= 0x5421"


# -- what can be wrong -----------------------------------------------------------------------------------

EQ = 'arg = 0, op = "eq", value = 1'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rule", r"p.toml:1: this is not TOML"),
        ("", "p.toml: architecture must be one of x86_64, aarch64, not None"),
        ('architecture = "vax"', "p.toml: architecture must be one of"),
        (HEAD, r"p.toml: there is no \[\[rule\]\]: nothing would be allowed"),
        ("rule = []\n" + HEAD, "nothing would be allowed"),
        ("rules = 1\n" + HEAD, "p.toml: rules is no field: there are architecture, constants, rule"),
        (HEAD + "c = 1\n", "constant c must be an upper-case name"),
        (HEAD + "C = -1\n", "constant C must be"),
        (HEAD + 'C = "1"\n', "constant C must be"),
        (HEAD + "C = true\n", "constant C must be"),
        ('constants = 1\narchitecture = "x86_64"', r"\[constants\] must be a table"),
        ('rule = [1]\narchitecture = "x86_64"', "p.toml: rule 1: a rule must be a table"),
        (
            HEAD + rule() + rule(calls='["opne"]'),
            r"p.toml:11: rule 2 \(opne\): there is no system call 'opne'",
        ),
        (HEAD + rule("resaon = 1"), "p.toml:6: rule 1: resaon is no field: there are calls, when, reason"),
        (HEAD + rule(calls=""), "rule 1: calls must be a list of at least one string, not None"),
        (HEAD + rule(calls="[]"), "calls must be a list"),
        (HEAD + rule(calls="[1]"), "calls must be a list"),
        (HEAD + rule(calls='"read"'), "calls must be a list"),
        (HEAD + rule(calls='["read", "read"]'), "calls names something twice"),
        (HEAD + rule(reason='" "'), r"\(ioctl\): reason is missing"),
        (HEAD + rule(features=""), "features must be a list"),
        (HEAD + rule(features='["Net"]'), "feature 'Net' must be of lower-case letters"),
        (HEAD + rule(threads='["main"]'), "no threads 'main': there are process, vcpu"),
        (HEAD + rule(threads="[]"), "threads must be a list"),
        (HEAD + rule(errno='"ENOSUCH"'), "errno must be a name such as ENOSYS, not 'ENOSUCH'"),
        (HEAD + rule(errno='"errorcode"'), "errno must be a name"),
        (HEAD + rule(errno="38"), "errno must be a name"),
        (HEAD + rule(when="1"), "when must be a list of conditions"),
        (HEAD + rule(when="[1]"), "when must be a list of conditions"),
        (HEAD + when('arg = 6, op = "eq", value = 1'), r"when\[0\].arg must be a number from 0 to 5, not 6"),
        (HEAD + when('arg = true, op = "eq", value = 1'), r"when\[0\].arg must be"),
        (HEAD + when('op = "eq", value = 1'), r"when\[0\].arg must be"),
        (HEAD + when(EQ, 'arg = 1, op = "is", value = 1'), r"when\[1\].op must be one of eq, ne"),
        (HEAD + when(EQ + ", valeu = 1"), r"when\[0\].valeu is no field: there are arg, op"),
        (HEAD + when('arg = 0, op = "eq"'), r"when\[0\].value must be a number of 64 bits"),
        (HEAD + when('arg = 0, op = "eq", value = -1'), r"when\[0\].value must be a number"),
        (HEAD + when('arg = 0, op = "eq", value = true'), r"when\[0\].value must be a number"),
        (HEAD + when('arg = 0, op = "eq", value = 18446744073709551616'), "value must be a number"),
        (HEAD + when('arg = 0, op = "eq", value = "BIG", bits = 32'), "value must be a number of 32 bits"),
        (HEAD + when('arg = 0, op = "eq", value = "C"'), r"value: 'C' is not in \[constants\]"),
        (HEAD + when('arg = 0, op = "eq", value = ""'), r"value: '' is not in \[constants\]"),
        (HEAD + when('arg = 0, op = "eq", value = "$PID"'), r"'\$PID' is not in \[constants\]"),
        (HEAD + when('arg = 0, op = "lt", value = 1, bits = 32'), "bits must be 64, or 32 with eq"),
        (HEAD + when('arg = 0, op = "eq", value = 1, bits = 16'), "bits must be 64"),
        (HEAD + when(EQ + ", mask = 1"), "mask goes with op masked"),
        (HEAD + when('arg = 0, op = "masked", value = 1'), "mask goes with op masked, which needs it"),
        (HEAD + when('arg = 0, op = "masked", mask = 0, value = 0'), "mask is 0: this would always hold"),
        (HEAD + when('arg = 0, op = "masked", mask = 1, value = 2'), "bits that the mask has not"),
        (HEAD + when('arg = 0, op = "in", value = [1]'), "value must be a list of at least two values"),
        (HEAD + when('arg = 0, op = "in", value = 1'), "value must be a list of at least two values"),
        (HEAD + when('arg = 0, op = "in", value = ["A", 1]'), "value names something twice"),
        (HEAD + when('arg = 0, op = "eq", value = [1]'), "value must be a number"),
        (HEAD + when(EQ, EQ), "when has two conditions on argument 0: make them one, or two rules"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy(text, "p.toml")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (rule(), when(EQ), r"p.toml:11: rule 2: ioctl contradicts rule 1 \(line 6\): one has conditions"),
        (when(EQ), rule(), "rule 2: ioctl contradicts rule 1"),
        (rule(), rule(), r"p.toml:11: rule 2: ioctl is in rule 1 \(line 6\) already"),
        (when(EQ), when(EQ), "ioctl with these conditions is in rule 1"),
        (
            when(EQ, 'arg = 1, op = "eq", value = 2'),
            when('arg = 1, op = "eq", value = "B"', EQ),
            "ioctl with these conditions is in rule 1",
        ),
        (rule(), rule(errno='"EPERM"'), "ioctl contradicts rule 1 .*: there allow, here errno EPERM"),
        (rule(errno='"EPERM"'), when(EQ, errno='"EACCES"'), "there errno EPERM, here errno EACCES"),
        (rule(), rule(features='["block"]'), "ioctl is in rule 1"),
        (rule(calls='["read"]'), rule(threads='["vcpu"]'), "ioctl on threads vcpu has no effect"),
    ],
)
def test_rules_that_contradict_each_other(first: str, second: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy(HEAD + first + second, "p.toml")


def test_rules_for_different_threads_do_not_contradict() -> None:
    policy = parse_policy(HEAD + rule() + when(EQ, threads='["vcpu"]'), "p.toml")
    assert [len(policy.select((), thread)) for thread in THREADS] == [1, 1]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read the seccomp policy .*none\.toml: it does not exist"):
        load_policy(path=tmp_path / "none.toml")
    with pytest.raises(PolicyError, match="cannot read the seccomp policy"):
        load_policy(path=tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="cannot read the seccomp policy"):
        load_policy(path=broken)
    broken.write_bytes(b'architecture = "x86_64"\n[[rule]]\n[[')
    with pytest.raises(PolicyError, match=r"broken.toml:3: this is not TOML"):
        load_policy(path=broken)


_ANY = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text("abA$~|", max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=4,
)


def _table(**valid: object) -> st.SearchStrategy[dict[str, object]]:
    """A table whose fields are mostly right."""
    return st.fixed_dictionaries({}, optional={key: st.one_of(st.just(v), _ANY) for key, v in valid.items()})


_CONDITION = st.fixed_dictionaries(
    {},
    optional={
        "arg": st.one_of(st.integers(0, 6), _ANY),
        "op": st.one_of(st.sampled_from(["eq", "in", "masked", "lt"]), _ANY),
        "value": st.one_of(st.integers(0, 9), st.just("A"), st.just([1, 2]), _ANY),
        "mask": st.one_of(st.just("~A"), _ANY),
        "bits": st.sampled_from([32, 64]),
    },
)


@given(
    st.fixed_dictionaries(
        {"architecture": st.just("x86_64"), "constants": st.just({"A": 1})},
        optional={
            "rule": st.lists(
                st.builds(
                    lambda table, conditions: {**table, "when": conditions},
                    _table(
                        calls=["ioctl"], reason="why", features=["base"], threads=["process"], errno="EPERM"
                    ),
                    st.one_of(st.lists(_CONDITION, max_size=2), _ANY),
                ),
                max_size=3,
            )
        },
    )
)
def test_whatever_the_file_says_it_is_a_policy_or_a_policy_error(document: dict[str, object]) -> None:
    try:
        policy = parse_policy(tomli_w.dumps(document), "p.toml")
    except PolicyError as error:
        assert str(error).startswith("p.toml")
    else:
        assert policy.rules
