"""What programs under our policies were seen to call, and which parts of the rules that shows to be needed.

The record, tests/hypervisor/policy_use.json, is an object {POLICY: {CALL: TEST}}: POLICY names a program,
"shim" the runtime's own; CALL is a call with the arguments that the rules look at ("ioctl 1=0xae80"), TEST
one that was running when it was made. Maker: record_policy_use.py.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.comparison import compare
from kata_hypervisor.seccomp.policy import Condition, Policy, Rule, load_policy
from kata_hypervisor.seccomp.rules import ALL_BITS, INT_BITS
from kata_hypervisor.seccomp.trace import Arguments, Observation, Trace

HERE = Path(__file__).parents[1] / "hypervisor"
RECORD, REASONS = HERE / "policy_use.json", HERE / "policy_reasons.toml"
ARCHITECTURE = "x86_64"
POLICIES = ("shim", "broker", "qemu", "virtiofsd", "cloud-hypervisor", "solo5-hvt")

Use = Mapping[str, str]
Reasons = Sequence[Mapping[str, Any]]


def policy_named(name: str) -> Policy:
    """The shipped policy of a program; "shim" is the runtime's own."""
    return load_policy(ARCHITECTURE, program="" if name == "shim" else name)


class Distinctions:
    """Which arguments of a call matter to a policy."""

    def __init__(self, policy: Policy) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in policy.rules:
            for call in rule.calls:
                self._rules.setdefault(call, []).append(rule)

    def answers(self, call: str) -> bool:
        """Whether some rule answers the call with an error."""
        return any(rule.action != actions.ALLOW for rule in self._rules.get(call, ()))

    def kept(self, call: str, arguments: Sequence[int]) -> Arguments | None:
        """The arguments by which rules let the call through; None where no rule does."""
        rules = [rule for rule in self._rules.get(call, ()) if rule.action == actions.ALLOW]
        letting = [rule for rule in rules if all(_holds(one, arguments) for one in rule.conditions)]
        if not letting:
            return None
        bits: dict[int, int] = {}
        for condition in (one for rule in letting for one in rule.conditions):
            if isinstance(condition.value, int):
                bits[condition.index] = bits.get(condition.index, 0) | _width(condition)
        return tuple((index, arguments[index] & bits[index]) for index in sorted(bits))


def _holds(condition: Condition, arguments: Sequence[int]) -> bool:
    return isinstance(condition.value, str) or condition.allows(arguments[condition.index])


def _width(condition: Condition) -> int:
    """The bits of an argument that a condition is about: the kernel takes an int, or all of the register."""
    of_an_int = condition.op == "masked" and (condition.mask or 0) <= INT_BITS
    return INT_BITS if of_an_int else ALL_BITS


def spell(call: str, arguments: Arguments) -> str:
    """A call as the record names it."""
    return " ".join([call, *(f"{index}={value:#x}" for index, value in arguments)])


def parse(text: str) -> tuple[str, Arguments]:
    """The inverse of `spell`."""
    call, *arguments = text.split()
    pairs = (argument.split("=") for argument in arguments)
    return call, tuple((int(index), int(value, 16)) for index, value in pairs)


def trace_of(use: Use) -> Trace:
    """A policy's part of the record, as it is held against rules."""
    seen = tuple(Observation("", "", *_numbered(text), 1) for text in use)
    return Trace(ARCHITECTURE, "", (), 0, seen)


def _numbered(text: str) -> tuple[str, int, Arguments]:
    call, arguments = parse(text)
    return call, 0, arguments


@dataclass(frozen=True, slots=True)
class Part:
    """One call of a rule, with one of the values that it allows: the least that can be taken out."""

    rule: Rule

    @property
    def name(self) -> str:
        """As reasons name it: the call, and where its rule has conditions, these."""
        call = self.rule.calls[0]
        return f"{call} when {self.rule.when}" if self.rule.conditions else call


def parts(policy: Policy) -> Iterator[Part]:
    """All that a policy allows or answers, piece by piece."""
    for rule in policy.rules:
        for call in rule.calls:
            yield Part(replace(rule, calls=(call,)))


def unneeded(policy: Policy, use: Use) -> list[Part]:
    """The parts that allow what was never seen. To be answered with an error is no right."""
    pieces = [piece for piece in parts(policy) if piece.rule.action == actions.ALLOW]
    unused = compare(trace_of(use), [piece.rule for piece in pieces]).unused
    return [piece for piece in pieces if piece.rule in unused]


def unexplained(policy: Policy, use: Use, reasons: Reasons) -> list[Part]:
    """The parts that were never seen to be needed, and of which nothing says why they stay."""
    features, names = _listed(reasons, "features"), _listed(reasons, "parts")
    return [
        piece
        for piece in unneeded(policy, use)
        if piece.name not in names and not piece.rule.features <= set(features)
    ]


def needless_reasons(policy: Policy, use: Use, reasons: Reasons) -> list[str]:
    """What has a reason and was seen, or is not there: of a feature, every part."""
    unseen = unneeded(policy, use)
    names = {piece.name for piece in unseen}
    features = {feature for piece in unseen for feature in piece.rule.features}
    left = [feature for feature in _listed(reasons, "features") if feature not in features]
    return left + [name for name in _listed(reasons, "parts") if name not in names]


def _listed(reasons: Reasons, field: str) -> list[str]:
    return [name for reason in reasons for name in reason.get(field, [])]


def not_allowed(policy: Policy, use: Use) -> list[str]:
    """What was seen, and falls under no rule."""
    missing = compare(trace_of(use), policy.rules).missing
    return [spell(seen.call, seen.arguments) for seen in missing]


def load_record() -> dict[str, dict[str, str]]:
    """The record that is checked in."""
    found: dict[str, dict[str, str]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def save_record(record: Mapping[str, Use]) -> None:
    """Write the record, without what no rule's arguments distinguish any more."""
    sorted_record = {name: dict(sorted(record.get(name, {}).items())) for name in POLICIES}
    RECORD.write_text(json.dumps(sorted_record, indent=1) + "\n", encoding="utf-8")


def load_reasons() -> dict[str, list[dict[str, Any]]]:
    """Why what no test makes use of stays: for each policy, tables of "why" and of "parts" or "features"."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8"))
