"""What one or several filters let through, for every system call: found by following each path of a program.

The call's number is given, its arguments are unknown. Tests for equality, of bits and of order on a word of
the call narrow what is known of that word, so a path that no call can take is not followed. What cannot be
followed exactly is followed both ways: a call is reported closed only when no path lets it through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kata_hypervisor.seccomp import bpf
from kata_hypervisor.seccomp.actions import describe
from kata_hypervisor.seccomp.constraint import FULL, Constraint
from kata_hypervisor.seccomp.syscalls import numbers

Access = Literal["open", "conditional", "closed"]

_MAX_PATHS = 5_000
_NUMBER, _ARCH = 0, 1
_X32_BIT = 0x40000000
_ACTION = 0xFFFF0000


class Masked(NamedTuple):
    """A word of the call, of which some bits are masked out. added: bits that are set whatever it is."""

    word: int
    mask: int
    added: int = 0

    @property
    def action(self) -> int | None:
        """What is returned with it, if that is known: the data of an action does not matter."""
        return None if self.mask & _ACTION else self.added


Value = int | Masked | None  # None: nothing is known
Words = dict[int, Constraint]


@dataclass(frozen=True, slots=True)
class Reach:
    """What filters do with a call over all its arguments.

    refusals: what happens to it where it is not let through, as actions.describe puts it.
    """

    access: Access
    refusals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a thread's filters let through.

    calls: each named system call of the architecture. unnamed: native numbers that have no name yet. x32:
    the x86_64 numbers of the x32 convention (None elsewhere). foreign: calls of another architecture.
    """

    arch: str
    calls: dict[str, Reach]
    unnamed: Reach
    x32: Reach | None
    foreign: Reach

    def named(self, *accesses: Access) -> list[str]:
        """The names of the calls with one of these accesses, in the order of their numbers."""
        return [name for name, reach in self.calls.items() if reach.access in accesses]

    @property
    def allowed(self) -> list[str]:
        """The names of the calls that are let through at least for some arguments."""
        return self.named("open", "conditional")

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is let through beside the named calls."""
        others = {"calls without a name": self.unnamed, "x32 calls": self.x32, "foreign calls": self.foreign}
        return tuple(what for what, reach in others.items() if reach and reach.access != "closed")


def survey(programs: Sequence[bytes], arch: str = "x86_64") -> Survey:
    """Survey the filters of one thread, in any order: of several, the strictest answer counts.

    programs: as readback.read_filters returns them; empty for a thread without a filter.

    Raises:
        PolicyError: one of them is not a program that the kernel takes.
    """
    decoded = [bpf.decode(program) for program in programs]
    calls = numbers(arch)
    native = bpf.AUDIT_ARCH[arch]
    anything, here = Constraint(), exactly(native)
    unnamed = anything.between(max(calls.values()) + 1, _X32_BIT - 1)
    x32 = anything.between(_X32_BIT, 2 * _X32_BIT - 1)
    return Survey(
        arch,
        {name: reach_of(decoded, exactly(number), here) for name, number in calls.items()},
        unnamed=reach_of(decoded, unnamed, here),
        x32=reach_of(decoded, x32, here) if arch == "x86_64" else None,
        foreign=reach_of(decoded, anything, anything.without_bits(FULL, native)),
    )


def exactly(value: int) -> Constraint:
    """The set of this one word."""
    return Constraint(mask=FULL, value=value, low=value, high=value)


def reach_of(
    programs: Sequence[Sequence[bpf.Instruction]], number: Constraint | None, architecture: Constraint | None
) -> Reach:
    """Follow every path through all programs that a call with such a number and architecture can take."""
    assert number is not None
    assert architecture is not None
    words = {_NUMBER: number, _ARCH: architecture}
    results: set[int | None] = set()
    for count, result in enumerate(_results(programs, words, ())):
        if count == _MAX_PATHS:
            return Reach("open", ("more paths than were followed",))
        results.add(result)
    allowed = any(result is None or bpf.is_allowed(result) for result in results)
    refusals = {"unknown" if result is None else describe(result) for result in results}
    refusals -= {"allow", "log"}
    access: Access = "closed" if not allowed else "conditional" if refusals else "open"
    return Reach(access, tuple(sorted(refusals)))


def _results(
    programs: Sequence[Sequence[bpf.Instruction]], words: Words, returned: tuple[int, ...]
) -> Iterator[int | None]:
    """What the programs together return on each path; None: what a path returns is not known."""
    if not programs:
        yield bpf.strictest(returned)
        return
    for result, narrowed in _follow(programs[0], words):
        if result is None:
            yield None
        else:
            yield from _results(programs[1:], narrowed, (*returned, result))


class _State(NamedTuple):
    """A place in a program, and what is known there."""

    place: int
    a: Value
    x: Value
    memory: tuple[Value, ...]
    words: Words


def _follow(program: Sequence[bpf.Instruction], words: Words) -> Iterator[tuple[int | None, Words]]:
    """Every result that a program can return, with what is then known of the call."""
    waiting = [_State(0, 0, 0, (0,) * bpf.MEMORY_WORDS, words)]
    while waiting:
        state = waiting.pop()
        while True:
            instruction = program[state.place]
            kind = instruction.code & 7
            if kind == bpf.RET:
                result = state.a if instruction.code & bpf.A else instruction.k
                yield (result.action if isinstance(result, Masked) else result), state.words
                break
            if kind == bpf.JMP:
                state, *others = _branches(state, instruction)
                waiting += others
                continue
            if instruction.code == bpf.ALU | bpf.DIV | bpf.X and (
                state.x == 0 or not isinstance(state.x, int)
            ):
                yield 0, state.words
                if state.x == 0:
                    break
            state = _step(state, instruction)


def _step(state: _State, instruction: bpf.Instruction) -> _State:
    """One instruction that is no jump."""
    place, a, x, memory, words = state
    code, _, _, k = instruction
    kind = code & 7
    if kind == bpf.LD:
        a = _loaded(code, k, state)
    elif kind == bpf.LDX:
        x = _loaded(code, k, state)
    elif kind in (bpf.ST, bpf.STX):
        memory = (*memory[:k], a if kind == bpf.ST else x, *memory[k + 1 :])
    elif kind == bpf.MISC and code == bpf.MISC | bpf.TAX:
        x = a
    elif kind == bpf.MISC:
        a = x
    elif code == bpf.ALU | bpf.NEG:
        a = -a & FULL if isinstance(a, int) else None
    else:
        a = _computed(code & 0xF0, a, x if code & bpf.X else k, words)
    return _State(place + 1, a, x, memory, words)


def _loaded(code: int, k: int, state: _State) -> Value:
    mode = code & 0xE0
    if mode == bpf.ABS:
        return _known(Masked(k // 4, FULL), state.words)
    if mode == bpf.MEM:
        return state.memory[k]
    return bpf.DATA_SIZE if mode == bpf.LEN else k


def _known(value: Masked, words: Words) -> Value:
    """The number that a masked word is, if that is known."""
    constraint = words.get(value.word)
    if constraint is None or value.mask & ~constraint.mask:
        return value if value.mask else value.added
    return constraint.value & value.mask | value.added


def _computed(operation: int, left: Value, right: Value, words: Words) -> Value:
    if isinstance(left, int) and isinstance(right, int):
        return bpf.compute(operation, left, right)
    if operation in (bpf.AND, bpf.OR) and isinstance(left, int):
        left, right = right, left
    if not isinstance(left, Masked) or not isinstance(right, int):
        return None
    if operation == bpf.AND:
        return _known(Masked(left.word, left.mask & right, left.added & right), words)
    if operation == bpf.OR:
        return _known(Masked(left.word, left.mask & ~right, left.added | right), words)
    return None


def _branches(state: _State, instruction: bpf.Instruction) -> list[_State]:
    """The states after a jump that a call can reach, with what the jump's test says of the call."""
    code, jt, jf, k = instruction
    following = state.place + 1
    if code == bpf.JMP | bpf.JA:
        return [state._replace(place=following + k)]
    left = _known(state.a, state.words) if isinstance(state.a, Masked) else state.a
    right = state.x if code & bpf.X else k
    test = code & 0xF0
    if isinstance(left, int) and isinstance(right, int):
        return [state._replace(place=following + (jt if bpf.compare(test, left, right) else jf))]
    taken: Words | None = state.words
    passed: Words | None = state.words
    if isinstance(left, Masked) and not left.added and isinstance(right, int):
        constraint = state.words.get(left.word, Constraint())
        true, false = _tested(constraint, left.mask, test, right)
        taken = state.words | {left.word: true} if true else None
        passed = state.words | {left.word: false} if false else None
    ways = [(taken, jt), (passed, jf)]
    return [
        state._replace(place=following + offset, words=words) for words, offset in ways if words is not None
    ]


def _tested(
    constraint: Constraint, mask: int, test: int, k: int
) -> tuple[Constraint | None, Constraint | None]:
    """What is left of a constraint where w & mask passes the test against k, and where it fails."""
    if test == bpf.JEQ:
        return constraint.with_bits(mask, k), constraint.without_bits(mask, k)
    if test == bpf.JSET:
        return constraint.without_bits(mask & k, 0), constraint.with_bits(mask & k, 0)
    if test == bpf.JGE:  # the same as being greater than the number before
        if k == 0:
            return constraint, None
        k -= 1
    if k >= mask:
        return None, constraint
    if k == 0:
        return constraint.without_bits(mask, 0), constraint.with_bits(mask, 0)
    if mask == FULL:
        return constraint.between(k + 1, FULL), constraint.between(0, k)
    return constraint, constraint


def union(surveys: Sequence[Survey]) -> Survey:
    """What threads of one process and architecture let through together: each call as where it is least held.

    Raises:
        ValueError: there is no survey.
    """
    if not surveys:
        raise ValueError("a union needs at least one survey")
    first = surveys[0]
    if len(set(map(id, surveys))) == 1:
        return first
    calls = {name: _weakest([survey.calls[name] for survey in surveys]) for name in first.calls}
    return Survey(
        first.arch,
        calls,
        unnamed=_weakest([survey.unnamed for survey in surveys]),
        x32=_weakest([survey.x32 for survey in surveys if survey.x32]) if first.x32 else None,
        foreign=_weakest([survey.foreign for survey in surveys]),
    )


def _weakest(reaches: Sequence[Reach]) -> Reach:
    order: tuple[Access, ...] = ("open", "conditional", "closed")
    access = min((reach.access for reach in reaches), key=order.index)
    refusals = {refusal for reach in reaches for refusal in reach.refusals} if access != "open" else set()
    return Reach(access, tuple(sorted(refusals)))
