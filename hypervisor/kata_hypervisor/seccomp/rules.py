"""The parts of a policy: conditions on a call's arguments, and rules made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.program import PROCESS, VCPU

THREADS = (PROCESS, VCPU)
OPERATORS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
ALL_BITS = 0xFFFFFFFFFFFFFFFF
INT_BITS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Condition:
    """What one argument of a call must be.

    index: 0 to 5. op: "eq", "ne", "lt", "le", "gt", "ge" (unsigned, 64 bits), or "masked": argument & mask ==
    value. value: a number, or "$name" for one that is bound later. text: the value as the policy names it.
    """

    index: int
    op: str
    value: int | str
    mask: int | None = None
    text: str = ""

    def bind(self, values: Mapping[str, int]) -> Condition:
        """With the value of its name, if it has one of these."""
        if isinstance(self.value, str) and self.value[1:] in values:
            return replace(self, value=values[self.value[1:]])
        return self

    @property
    def number(self) -> int:
        """The value. Raises PolicyError while it is a name."""
        if isinstance(self.value, str):
            raise PolicyError(
                f"the value of {self.value} is not known: bind it before the policy is compiled"
            )
        return self.value

    def allows(self, argument: int) -> bool:
        """Whether an argument, as the 64 bits of its register, satisfies this condition."""
        value = self.number
        if self.op == "masked":
            return argument & (self.mask or 0) == value
        results = {
            "eq": argument == value,
            "ne": argument != value,
            "lt": argument < value,
            "le": argument <= value,
            "gt": argument > value,
            "ge": argument >= value,
        }
        return results[self.op]

    def __str__(self) -> str:
        value = self.text or _number(self.value)
        if self.op != "masked":
            return f"argument {self.index} {OPERATORS[self.op]} {value}"
        if self.mask == INT_BITS:
            return f"argument {self.index} == {value}"
        return f"argument {self.index} & {_number(self.mask or 0)} == {value}"


@dataclass(frozen=True, slots=True)
class Rule:
    """Calls that are answered alike when all conditions hold; rules that share a call are alternatives.

    action: a value of SECCOMP_RET_*, see `actions`. number, line: where it stands in the policy's file.
    """

    calls: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    reason: str = ""
    features: frozenset[str] = frozenset()
    threads: frozenset[str] = frozenset((PROCESS,))
    action: int = actions.ALLOW
    number: int = 0
    line: int = 0

    def bind(self, values: Mapping[str, int]) -> Rule:
        """With the values of the names in its conditions, as far as these have them."""
        return replace(self, conditions=tuple(condition.bind(values) for condition in self.conditions))

    @property
    def when(self) -> str:
        """Its conditions as people read them; "always" without any."""
        return " and ".join(map(str, self.conditions)) or "always"


def _number(value: int | str) -> str:
    return value if isinstance(value, str) else str(value) if value < 10 else f"{value:#x}"
