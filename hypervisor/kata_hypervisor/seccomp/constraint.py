"""What is known of one 32-bit word of a call after a filter has tested it.

A word's constraint is a set of values, described by bits that are known, an interval, and values that some of
its bits do not have together. `narrowed` methods return a smaller set, or None where it would be empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

FULL = 0xFFFFFFFF
_BUDGET = 2000


@dataclass(frozen=True, slots=True)
class Constraint:
    """A set of 32-bit words: those w with w & mask == value, low <= w <= high, and no exclusion.

    exclusions: pairs (m, v), each of which means w & m != v.
    """

    mask: int = 0
    value: int = 0
    low: int = 0
    high: int = FULL
    exclusions: frozenset[tuple[int, int]] = frozenset()

    @property
    def known(self) -> int | None:
        """The only word of the set, when its bits are all known."""
        return self.value if self.mask == FULL else None

    def with_bits(self, mask: int, value: int) -> Constraint | None:
        """Those with w & mask == value."""
        if value & ~mask & FULL or (self.value ^ value) & self.mask & mask:
            return None
        return replace(self, mask=self.mask | mask, value=self.value | value)._unless_empty()

    def without_bits(self, mask: int, value: int) -> Constraint | None:
        """Those with w & mask != value."""
        if value & ~mask & FULL or (self.value ^ value) & self.mask & mask:
            return self
        if mask == FULL and not self.low <= value <= self.high:
            return self
        undecided = mask & ~self.mask & FULL
        if undecided.bit_count() == 1:
            return self.with_bits(undecided, ~value & undecided)
        return replace(self, exclusions=self.exclusions | {(mask, value)})._unless_empty()

    def between(self, low: int, high: int) -> Constraint | None:
        """Those within an interval, both ends included."""
        low, high = max(self.low, low), min(self.high, high)
        if low > high:
            return None
        narrowed = replace(self, low=low, high=high)
        return narrowed.with_bits(FULL, low) if low == high else narrowed._unless_empty()

    def _unless_empty(self) -> Constraint | None:
        return self if _Search(self).succeeds() else None


class _Search:
    """Look for a word of a constraint, bit by bit from the highest.

    Any set of exclusions can be a hard puzzle, so the search gives up after a number of steps and then says
    that there is such a word: a filter may be taken for weaker than it is, never for stronger.
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._budget = _BUDGET

    def succeeds(self) -> bool:
        """Whether there is a word, as far as the search can tell."""
        constraint = self._constraint
        if not constraint.exclusions and (constraint.low, constraint.high) == (0, FULL):
            return True
        return self._descend(31, True, True, list(constraint.exclusions))

    def _descend(self, bit: int, at_low: bool, at_high: bool, exclusions: list[tuple[int, int]]) -> bool:
        """at_low, at_high: whether the bits chosen so far are those of that end of the interval."""
        self._budget -= 1
        if bit < 0 or self._budget < 0:
            return not exclusions or self._budget < 0
        constraint = self._constraint
        choices = []
        for choice in (0, 1):
            if constraint.mask >> bit & 1 and constraint.value >> bit & 1 != choice:
                continue
            if (at_low and choice < constraint.low >> bit & 1) or (
                at_high and choice > constraint.high >> bit & 1
            ):
                continue
            remaining = [(m, v) for m, v in exclusions if not m >> bit & 1 or v >> bit & 1 == choice]
            choices.append((len(remaining), choice, remaining))
        for _, choice, remaining in sorted(choices, key=lambda option: option[0]):
            low = at_low and choice == constraint.low >> bit & 1
            high = at_high and choice == constraint.high >> bit & 1
            if not (remaining or low or high) and not constraint.mask & ((1 << bit) - 1):
                return True
            if _refuted(remaining, bit):
                continue
            if self._descend(bit - 1, low, high, remaining):
                return True
        return False


def _refuted(exclusions: Iterable[tuple[int, int]], bit: int) -> bool:
    """Whether one of the exclusions has no bit left by which a word could differ from it."""
    return any(not mask & ((1 << bit) - 1) for mask, _ in exclusions)
