"""No policy allows what nobody needs: each call of a rule was seen, or a reason says why it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_hypervisor.seccomp.policy import parse_policy
from policy_use import (
    POLICIES,
    Distinctions,
    load_reasons,
    load_record,
    needless_reasons,
    not_allowed,
    policy_named,
    unexplained,
)

RECORD, REASONS = load_record(), load_reasons()
POLICY = parse_policy(
    """
architecture = "x86_64"
[[rule]]
calls = ["read", "write"]
reason = "descriptors"
features = ["base"]
[[rule]]
calls = ["ioctl"]
when = [{ arg = 1, op = "in", value = [7, 8], bits = 32 }]
reason = "requests"
features = ["base"]
[[rule]]
calls = ["ioctl"]
when = [{ arg = 1, op = "eq", value = 9, bits = 32 }, { arg = 2, op = "eq", value = 0 }]
reason = "a request without an argument"
features = ["rare"]
[[rule]]
calls = ["clone3"]
errno = "ENOSYS"
reason = "its flags are in memory"
features = ["base"]
""",
    "policy",
)


@pytest.mark.parametrize("name", POLICIES)
def test_each_part_is_needed(name: str) -> None:
    left = [part.name for part in unexplained(policy_named(name), RECORD[name], REASONS.get(name, []))]
    assert not left, (
        "no test was seen to need these: take them out of the policy, or say in policy_reasons.toml why they "
        f"stay; record_policy_use.py records what tests need: {left}"
    )


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_needed_is_allowed(name: str) -> None:
    left = not_allowed(policy_named(name), RECORD[name])
    assert not left, f"tests need these, and no rule allows them any more: {left}"


@pytest.mark.parametrize("name", POLICIES)
def test_no_reason_is_for_what_is_seen_or_gone(name: str) -> None:
    assert needless_reasons(policy_named(name), RECORD[name], REASONS.get(name, [])) == []


def test_each_reason_is_a_sentence_of_something() -> None:
    assert REASONS.keys() <= set(POLICIES)
    for reason in (one for reasons in REASONS.values() for one in reasons):
        assert reason.keys() in ({"why", "parts"}, {"why", "features"}), reason
        assert len(reason["why"].split()) > 3, reason


def test_the_record_names_tests_that_there_are() -> None:
    tests = Path(__file__).parents[1]
    for name in {test for use in RECORD.values() for test in use.values()}:
        file, _, function = name.partition("::")
        (source,) = tests.glob(f"*/{file}.py")
        assert f"def {function}(" in source.read_text(encoding="utf-8"), name


def test_each_call_and_each_value_is_a_part_of_its_own() -> None:
    left = unexplained(POLICY, {"read": "a", "ioctl 1=0x7": "a"}, [])
    assert [part.name for part in left] == [
        "write",
        "ioctl when argument 1 == 8",
        "ioctl when argument 1 == 9 and argument 2 == 0",
    ]


def test_a_reason_is_for_a_part_or_for_a_feature() -> None:
    use = {"read": "a", "ioctl 1=0x7": "a"}
    parts = ["write", "ioctl when argument 1 == 8"]
    reasons = [{"why": "x", "features": ["rare"]}, {"why": "y", "parts": parts}]
    assert unexplained(POLICY, use, reasons) == []
    assert needless_reasons(POLICY, use, reasons) == []
    everything = {**use, "write": "a", "ioctl 1=0x9 2=0x0": "a", "ioctl 1=0x8": "a"}
    assert needless_reasons(POLICY, everything, reasons) == ["rare", "write", "ioctl when argument 1 == 8"]
    assert needless_reasons(POLICY, use, [{"why": "x", "parts": ["open"]}]) == ["open"]


def test_what_falls_under_no_rule_is_named() -> None:
    assert not_allowed(POLICY, {"ioctl 1=0xa": "a", "open": "a", "clone3": "a"}) == ["ioctl 1=0xa", "open"]


def test_arguments_are_kept_that_decide() -> None:
    seen = Distinctions(POLICY)
    assert seen.kept("read", (3, 0x7FFF0000, 5, 0, 0, 0)) == ()
    assert seen.kept("ioctl", (3, 0xFFFFFFFF00000007, 0x7FFF0000, 0, 0, 0)) == ((1, 7),)
    assert seen.kept("ioctl", (3, 9, 0, 0, 0, 0)) == ((1, 9), (2, 0))
    assert seen.kept("ioctl", (3, 10, 0, 0, 0, 0)) is None
    assert seen.kept("clone3", (0,) * 6) is None
    assert seen.answers("clone3")
    assert not seen.answers("read")
