"""Following every path of a filter: never less than what a call can do, and exact for real filters."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions, bpf, constraint, syscalls
from kata_hypervisor.seccomp.bpf import SeccompData
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.constraint import FULL, Constraint
from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.seccomp.survey import Reach, exactly, reach_of, survey, union

ARCH = "x86_64"
IOCTL = syscalls.numbers()["ioctl"]
LOAD_ARCH, LOAD_NUMBER = (bpf.LD | bpf.ABS, 0, 0, 4), (bpf.LD | bpf.ABS, 0, 0, 0)
ALLOW, KILL = (bpf.RET | bpf.K, 0, 0, actions.ALLOW), (bpf.RET | bpf.K, 0, 0, actions.KILL_PROCESS)

small = st.integers(0, 7)


@st.composite
def constraints(draw: st.DrawFn) -> tuple[list[tuple[str, int, int]], Constraint | None]:
    """Steps that narrow a word, and the constraint that they end in."""
    steps = draw(st.lists(st.tuples(st.sampled_from(["bits", "not", "between"]), small, small), max_size=7))
    found: Constraint | None = Constraint(high=7)
    for kind, first, second in steps:
        if found is None:
            break
        if kind == "bits":
            found = found.with_bits(first, second)
        elif kind == "not":
            found = found.without_bits(first, second)
        else:
            found = found.between(first, second)
    return steps, found


@settings(deadline=None)
@given(constraints())
def test_a_constraint_is_empty_exactly_when_no_word_is_left(
    narrowed: tuple[list[tuple[str, int, int]], Constraint | None],
) -> None:
    steps, found = narrowed
    tests = {
        "bits": lambda word, first, second: word & first == second,
        "not": lambda word, first, second: word & first != second,
        "between": lambda word, first, second: first <= word <= second,
    }
    left = [word for word in range(8) if all(tests[kind](word, a, b) for kind, a, b in steps)]
    assert (found is not None) == bool(left)
    if found is not None and found.known is not None:
        assert left == [found.known]


def test_a_puzzle_that_is_too_hard_counts_as_solvable(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Constraint(high=7, exclusions=frozenset((7, word) for word in range(8)))
    assert everything.between(0, 7) is None
    monkeypatch.setattr(constraint, "_BUDGET", 3)
    assert everything.between(0, 7) is not None


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """Programs of tests on 32-bit halves of arguments, with masks: only loads and tests, as compilers do."""
    length = draw(st.integers(1, 12))
    body: list[tuple[int, int, int, int]] = []
    for place in range(length):
        far = st.integers(0, min(length - place - 1, 6))
        kind = draw(st.sampled_from(["load", "and", "test", "test"]))
        if kind == "load":
            body.append((bpf.LD | bpf.ABS, 0, 0, draw(st.sampled_from([16, 20, 24]))))
        elif kind == "and":
            body.append((bpf.ALU | bpf.AND | bpf.K, 0, 0, draw(small)))
        else:
            test = draw(st.sampled_from([bpf.JEQ, bpf.JGT, bpf.JGE, bpf.JSET]))
            body.append((bpf.JMP | test | bpf.K, draw(far), draw(far), draw(small)))
    ends = draw(st.permutations([ALLOW, KILL]))
    return bpf.encode([(bpf.LD | bpf.ABS, 0, 0, 16), *body, (bpf.JMP | bpf.JEQ | bpf.K, 0, 1, 3), *ends])


def brute_force(code: Sequence[bytes], number: int) -> set[bool]:
    """Whether a call is let through, over every combination of arguments that the programs can tell apart."""
    values = range(9)
    results = set()
    for low in values:
        for high in (0, 1, 8):
            for second in values:
                data = SeccompData(number, bpf.AUDIT_ARCH[ARCH], 0, (high << 32 | low, second, 0, 0, 0, 0))
                results.add(bpf.is_allowed(bpf.strictest(bpf.run(one, data) for one in code)))
    return results


def reach_of_ioctl(stacked: list[bytes]) -> Reach:
    decoded = [bpf.decode(program) for program in stacked]
    return reach_of(decoded, exactly(IOCTL), exactly(bpf.AUDIT_ARCH[ARCH]))


@settings(max_examples=80, deadline=None)
@given(st.lists(programs(), min_size=1, max_size=2))
def test_it_agrees_with_trying_everything(stacked: list[bytes]) -> None:
    found = reach_of_ioctl(stacked).access
    tried = brute_force(stacked, IOCTL)
    # Trying covers a part of the words: what it has seen must be in the survey, and closed means never.
    if found == "closed":
        assert tried == {False}
    if found == "open":
        assert tried == {True}
    if tried == {True, False}:
        assert found == "conditional"


def test_no_filter_lets_everything_through() -> None:
    found = survey([])
    assert found.allowed == list(syscalls.numbers())
    assert found.named("conditional") == []
    assert found.gaps == ("calls without a name", "x32 calls", "foreign calls")


def compiled(*rules: Rule, default: int = actions.KILL_PROCESS) -> bytes:
    return compile_rules(rules, default, arch=ARCH).code


def test_a_compiled_policy_is_read_exactly() -> None:
    code = compiled(
        Rule(("read", "write")),
        Rule(("ioctl",), (Condition(1, "eq", 0x5421),)),
        Rule(("ioctl",), (Condition(1, "eq", 0x541B),)),
        Rule(("mmap",), (Condition(2, "masked", 0, 4), Condition(3, "masked", 0x22, 0x22))),
        Rule(("socket",), (Condition(0, "eq", 1), Condition(1, "masked", 1, 0xF))),
        Rule(("futex",), (Condition(1, "lt", 2),)),
        Rule(("clone3",), action=actions.errno(38)),
    )
    found = survey([code])
    assert found.named("open") == ["read", "write"]
    assert found.named("conditional") == ["mmap", "ioctl", "socket", "futex"]
    assert found.calls["clone3"].access == "closed"
    assert found.calls["clone3"].refusals == ("errno ENOSYS",)
    assert found.calls["ioctl"].refusals == found.calls["execve"].refusals == ("kill process",)
    assert found.gaps == ()


def test_a_way_that_no_word_can_take_is_not_followed() -> None:
    above, below = (bpf.JMP | bpf.JGT | bpf.K, 0, 1, 9), (bpf.JMP | bpf.JGT | bpf.K, 1, 0, 9)
    code = bpf.encode([(bpf.LD | bpf.ABS, 0, 0, 16), above, ALLOW, below, ALLOW, KILL])
    assert reach_of_ioctl([code]).access == "open"


def test_of_stacked_filters_a_call_needs_all() -> None:
    one = compiled(Rule(("read", "write")), Rule(("ioctl",), (Condition(1, "eq", 5),)))
    other = compiled(Rule(("read",)), Rule(("ioctl",), (Condition(1, "eq", 6),)), default=actions.errno(1))
    found = survey([one, other])
    assert found.allowed == ["read"]
    assert found.calls["ioctl"].access == "closed"
    assert found.calls["write"].refusals == ("errno EPERM",)
    assert found.calls["execve"].refusals == ("kill process",)


def test_threads_together_allow_what_one_of_them_does() -> None:
    one = survey([compiled(Rule(("read",)), Rule(("ioctl",), (Condition(1, "eq", 5),)))])
    other = survey([compiled(Rule(("read",), (Condition(0, "eq", 1),)), Rule(("write",)))])
    together = union([one, other])
    assert together.named("open") == ["read", "write"]
    assert together.named("conditional") == ["ioctl"]
    assert together.gaps == ()
    assert union([one, one]) is one
    with pytest.raises(ValueError, match="at least one"):
        union([])


def test_a_list_of_what_is_denied_has_gaps() -> None:
    code = bpf.encode([LOAD_NUMBER, (bpf.JMP | bpf.JEQ | bpf.K, 0, 1, IOCTL), KILL, ALLOW])
    found = survey([code])
    assert found.named("closed") == ["ioctl"]
    assert found.gaps == ("calls without a name", "x32 calls", "foreign calls")


def test_an_architecture_that_is_not_checked_is_a_gap() -> None:
    code = bpf.encode([LOAD_NUMBER, (bpf.JMP | bpf.JEQ | bpf.K, 0, 1, IOCTL), ALLOW, KILL])
    assert survey([code]).gaps == ("foreign calls",)
    checked = [LOAD_ARCH, (bpf.JMP | bpf.JEQ | bpf.K, 1, 0, bpf.AUDIT_ARCH[ARCH]), KILL]
    assert survey([bpf.encode([*checked, *map(tuple, bpf.decode(code))])]).gaps == ()


def test_what_depends_on_arithmetic_is_taken_both_ways() -> None:
    tricky = [(bpf.LD | bpf.ABS, 0, 0, 16), (bpf.ALU | bpf.MUL | bpf.K, 0, 0, 2)]
    odd = (bpf.JMP | bpf.JEQ | bpf.K, 0, 1, 3)  # twice a number is never 3
    assert reach_of_ioctl([bpf.encode([*tricky, odd, ALLOW, KILL])]).access == "conditional"


def test_a_division_by_an_argument_may_end_the_thread() -> None:
    load_x = [(bpf.LD | bpf.ABS, 0, 0, 16), (bpf.MISC | bpf.TAX, 0, 0, 0)]
    code = bpf.encode([*load_x, (bpf.ALU | bpf.DIV | bpf.X, 0, 0, 0), ALLOW])
    reach = reach_of_ioctl([code])
    assert (reach.access, reach.refusals) == ("conditional", ("kill thread",))


def test_a_result_that_is_not_known_counts_as_let_through() -> None:
    code = bpf.encode([(bpf.LD | bpf.ABS, 0, 0, 16), (bpf.RET | bpf.A, 0, 0, 0)])
    reach = reach_of_ioctl([code])
    assert (reach.access, reach.refusals) == ("conditional", ("unknown",))


def test_too_many_paths_count_as_open() -> None:
    steps: list[tuple[int, int, int, int]] = []
    for bit in range(20):
        steps += [(bpf.LD | bpf.ABS, 0, 0, 16), (bpf.JMP | bpf.JSET | bpf.K, 0, 1, 1 << bit)]
        steps += [(bpf.LD | bpf.IMM, 0, 0, 1)]
    number = [LOAD_NUMBER, (bpf.JMP | bpf.JEQ | bpf.K, 1, 0, IOCTL), ALLOW]
    reach = reach_of_ioctl([bpf.encode([*number, *steps, KILL])])
    assert reach.access == "open"
    assert reach.refusals == ("more paths than were followed",)


def test_a_program_that_the_kernel_would_not_take_is_an_error() -> None:
    with pytest.raises(PolicyError, match="no return"):
        survey([bpf.encode([LOAD_NUMBER])])


def test_every_number_of_a_word_is_known_or_not() -> None:
    assert Constraint(mask=FULL, value=7).known == 7
    assert Constraint(mask=FULL - 1, value=6).known is None
