"""A trace held against rules: what was called that no rule allows, and which rules nothing needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.seccomp.trace import Observation, Trace


@dataclass(frozen=True, slots=True)
class Comparison:
    """missing: seen, and not allowed. unused: rules under which nothing that was seen falls."""

    missing: tuple[Observation, ...]
    unused: tuple[Rule, ...]


def compare(trace: Trace, rules: Sequence[Rule]) -> Comparison:
    """Hold every observation against the rules.

    A condition on an argument that a trace does not keep, or on a value that is known at run time only, is
    taken to hold.
    """
    used: set[int] = set()
    missing = []
    for seen in trace.observations:
        matching = [place for place, rule in enumerate(rules) if _falls_under(seen, rule)]
        used.update(matching)
        if not matching:
            missing.append(seen)
    return Comparison(tuple(missing), tuple(rule for place, rule in enumerate(rules) if place not in used))


def _falls_under(seen: Observation, rule: Rule) -> bool:
    values = dict(seen.arguments)
    return seen.call in rule.calls and all(_may_hold(condition, values) for condition in rule.conditions)


def _may_hold(condition: Condition, values: dict[int, int]) -> bool:
    if condition.index not in values or isinstance(condition.value, str):
        return True
    return condition.allows(values[condition.index])
