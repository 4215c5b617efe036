"""The BPF interpreter, instruction by instruction against the kernel's own; and what the kernel takes."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filtered_calls import FilteredCalls
from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions, bpf, seal, syscalls
from kata_hypervisor.seccomp.bpf import SeccompData
from kata_hypervisor.seccomp.policy import load_policy

NATIVE = os.uname().machine
pytestmark = pytest.mark.skipif(
    NATIVE not in syscalls.ARCHITECTURES, reason=f"there is no table of system calls for {NATIVE}"
)

# A call that ignores its arguments and cannot fail: only the filter decides what it returns.
GETPPID = syscalls.number_of("getppid", NATIVE) or 0
ARCH = bpf.AUDIT_ARCH.get(NATIVE, 0)
WORDS = [0, 1, 2, 3, 7, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
words = st.sampled_from(WORDS) | st.integers(0, bpf.WORD)
doublewords = st.builds(lambda high, low: high << 32 | low, words, words)
arguments = st.tuples(*[doublewords] * 6)

LOAD_NUMBER = (bpf.LD | bpf.ABS, 0, 0, 0)
RETURN_A, ALLOW = (bpf.RET | bpf.A, 0, 0, 0), (bpf.RET | bpf.K, 0, 0, actions.ALLOW)
# A becomes an errno that tells its twelve lower bits.
TELL_A = [(bpf.ALU | bpf.AND | bpf.K, 0, 0, 0xFFF), (bpf.ALU | bpf.OR | bpf.K, 0, 0, actions.ERRNO), RETURN_A]

ARGUMENT_WORDS = range(16, 64, 4)


@pytest.fixture(scope="module")
def kernel() -> Iterator[FilteredCalls]:
    asked = FilteredCalls()
    yield asked
    asked.close()


def only_for_getppid(body: Sequence[Sequence[int]]) -> bytes:
    """A program for getppid alone, so that the process can report."""
    return bpf.encode([LOAD_NUMBER, (bpf.JMP | bpf.JEQ | bpf.K, 1, 0, GETPPID), ALLOW, *body])


@st.composite
def instructions(draw: st.DrawFn, following: int) -> tuple[int, int, int, int]:
    """An instruction that can jump over as many as this, with operands that are right."""
    code = draw(st.sampled_from(sorted(bpf.OPCODES - {bpf.RET | bpf.K, bpf.RET | bpf.A})))
    near = st.integers(0, min(following, 255))
    if code == bpf.LD | bpf.ABS:
        return code, 0, 0, draw(st.sampled_from([0, 4, *ARGUMENT_WORDS]))
    if code in (bpf.ST, bpf.STX, bpf.LD | bpf.MEM, bpf.LDX | bpf.MEM):
        return code, 0, 0, draw(st.integers(0, 15))
    if code == bpf.JMP | bpf.JA:
        return code, 0, 0, draw(near)
    if code & 7 == bpf.JMP:
        return code, draw(near), draw(near), draw(words)
    if code in (bpf.ALU | bpf.LSH | bpf.K, bpf.ALU | bpf.RSH | bpf.K):
        return code, 0, 0, draw(st.integers(0, 31))
    if code == bpf.ALU | bpf.DIV | bpf.K:
        return code, 0, 0, draw(words) or 1
    return code, 0, 0, draw(words)


@st.composite
def bodies(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """A body that stores every word of memory first, so that any later load of one is in order."""
    length = draw(st.integers(1, 24))
    stores = [(bpf.ST, 0, 0, word) for word in range(bpf.MEMORY_WORDS)]
    random = [draw(instructions(length - place - 1)) for place in range(length)]
    return [*stores, *random, *TELL_A]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(), made=st.lists(arguments, min_size=1, max_size=4))
def test_any_program_returns_what_the_kernel_returns(
    kernel: FilteredCalls, body: list[tuple[int, int, int, int]], made: list[tuple[int, ...]]
) -> None:
    code = only_for_getppid(body)
    assert_agrees(kernel, code, made)


def assert_agrees(kernel: FilteredCalls, code: bytes, made: Sequence[tuple[int, ...]]) -> None:
    """What the interpreter returns for getppid with these arguments is what the kernel does."""
    returned = {one: bpf.run(code, SeccompData(GETPPID, ARCH, 0, one)) for one in made}
    fatal = [one for one, result in returned.items() if result == 0]  # by a division by zero
    survived = [one for one in returned if one not in fatal]
    outcomes, status = kernel.ask(code, [[GETPPID, *one] for one in [*survived, *fatal[:1]]])
    for one, outcome in zip(survived, outcomes, strict=True):
        assert returned[one] & 0xFFFF0000 == actions.ERRNO
        number = returned[one] & 0xFFFF
        assert outcome == (["errno", number] if number else ["returned", 0])
    if fatal:
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGSYS


# Each opcode's own word about registers and operands: (body, arguments); the kernel says what is right.
LOW, HIGH = (bpf.LD | bpf.ABS, 0, 0, 16), (bpf.LD | bpf.ABS, 0, 0, 20)
TO_X = (bpf.MISC | bpf.TAX, 0, 0, 0)


def body_of(opcode: int) -> list[tuple[int, int, int, int]]:
    """A body in which this opcode decides the result."""
    k = {bpf.LD | bpf.ABS: 16, bpf.LD | bpf.MEM: 3, bpf.LDX | bpf.MEM: 3, bpf.ST: 3, bpf.STX: 3}.get(
        opcode, 5
    )
    both = [HIGH, TO_X, LOW, (bpf.ST, 0, 0, 3)]
    if opcode & 7 == bpf.JMP:
        jump = (opcode, 0, 1, 1 if opcode == bpf.JMP | bpf.JA else 5)
        return [*both, jump, (bpf.LD | bpf.IMM, 0, 0, 77), *TELL_A]
    after = {
        bpf.ST: [(bpf.LD | bpf.MEM, 0, 0, 3)],
        bpf.STX: [(bpf.LD | bpf.MEM, 0, 0, 3)],
        bpf.MISC | bpf.TAX: [(bpf.LD | bpf.IMM, 0, 0, 1), (bpf.ALU | bpf.ADD | bpf.X, 0, 0, 0)],
    }
    if opcode & 7 == bpf.LDX:
        return [*both, (opcode, 0, 0, k), (bpf.ALU | bpf.XOR | bpf.X, 0, 0, 0), *TELL_A]
    if opcode == bpf.RET | bpf.K:
        return [*both, (opcode, 0, 0, actions.ERRNO | 9)]
    if opcode == bpf.RET | bpf.A:
        return [*both, *TELL_A]
    return [*both, (opcode, 0, 0, k), *after.get(opcode, []), *TELL_A]


@pytest.mark.parametrize("opcode", sorted(bpf.OPCODES), ids=hex)
def test_each_opcode_does_what_the_kernel_does(kernel: FilteredCalls, opcode: int) -> None:
    code = only_for_getppid(body_of(opcode))
    lows, highs = (0, 5, 6, 0xFFFFFFFF), (0, 1, 5, 33, 0xFFFFFFFF)
    assert_agrees(kernel, code, [(high << 32 | low, 0, 0, 0, 0, 0) for low in lows for high in highs])


def test_the_opcodes_are_those_that_the_kernel_takes(kernel: FilteredCalls) -> None:
    taken = set()
    for code in range(256):
        before = [(bpf.ST, 0, 0, 0), (bpf.STX, 0, 0, 0)]
        program = bpf.encode([*before, (code, 0, 0, 0 if code & 7 != bpf.ALU else 1), ALLOW])
        outcomes, _ = kernel.ask(program, [])
        if outcomes == []:
            taken.add(code)
    # A return ends a program anywhere, so those are taken too; a jump needs a target, which 0 is.
    assert taken == bpf.OPCODES


WRONG = {
    "nothing": b"",
    "half an instruction": bytes(12),
    "too long": bpf.encode([ALLOW] * 4097),
    "no return at the end": bpf.encode([LOAD_NUMBER]),
    "a load beyond the data": bpf.encode([(bpf.LD | bpf.ABS, 0, 0, 64), ALLOW]),
    "a load between words": bpf.encode([(bpf.LD | bpf.ABS, 0, 0, 18), ALLOW]),
    "a load of a half word": bpf.encode([(0x28, 0, 0, 0), ALLOW]),
    "a remainder": bpf.encode([(0x94, 0, 0, 3), ALLOW]),
    "a division by zero": bpf.encode([(bpf.ALU | bpf.DIV | bpf.K, 0, 0, 0), ALLOW]),
    "a shift by 32": bpf.encode([(bpf.ALU | bpf.LSH | bpf.K, 0, 0, 32), ALLOW]),
    "word 16 of memory": bpf.encode([(bpf.ST, 0, 0, 16), ALLOW]),
    "memory before it is written": bpf.encode([(bpf.LD | bpf.MEM, 0, 0, 0), ALLOW]),
    "memory that one way has not written": bpf.encode(
        [(bpf.JMP | bpf.JEQ | bpf.K, 0, 1, 0), (bpf.ST, 0, 0, 2), (bpf.LD | bpf.MEM, 0, 0, 2), ALLOW]
    ),
    "a jump out": bpf.encode([(bpf.JMP | bpf.JA, 0, 0, 1), ALLOW]),
    "a jump far out": bpf.encode([(bpf.JMP | bpf.JA, 0, 0, 0xFFFFFFFF), ALLOW]),
    "a branch out": bpf.encode([(bpf.JMP | bpf.JGT | bpf.K, 0, 1, 0), ALLOW]),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_the_kernel_does_not_take_is_refused(kernel: FilteredCalls, what: str) -> None:
    with pytest.raises(PolicyError, match="seccomp program"):
        bpf.decode(WRONG[what])
    if len(WRONG[what]) % 8 == 0 and len(WRONG[what]) <= 4096 * 8:
        assert kernel.ask(WRONG[what], [])[0] == [["refused", errno.EINVAL]]


def test_the_longest_program_is_taken(kernel: FilteredCalls) -> None:
    code = bpf.encode([(bpf.LD | bpf.IMM, 0, 0, 0)] * 4095 + [ALLOW])
    assert bpf.run(code, SeccompData(GETPPID, ARCH)) == actions.ALLOW
    outcomes, _ = kernel.ask(code, [[GETPPID] + [0] * 6])
    assert outcomes[0][0] == "returned"


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([], actions.ALLOW),
        ([actions.ALLOW, actions.LOG], actions.LOG),
        ([actions.LOG, actions.TRACE], actions.TRACE),
        ([actions.NOTIFY, actions.TRACE], actions.NOTIFY),
        ([actions.NOTIFY, actions.ERRNO | 1], actions.ERRNO | 1),
        ([actions.TRAP, actions.ERRNO | 1], actions.TRAP),
        ([actions.TRAP, actions.KILL_THREAD], actions.KILL_THREAD),
        ([actions.KILL_THREAD, actions.KILL_PROCESS, actions.ALLOW], actions.KILL_PROCESS),
        ([actions.ERRNO | 1, actions.ERRNO | 2], actions.ERRNO | 1),
    ],
)
def test_of_several_filters_the_strictest_counts(returns: list[int], expected: int) -> None:
    assert bpf.strictest(returns) == expected


def test_the_shipped_programs_do_in_the_kernel_what_they_do_here(kernel: FilteredCalls) -> None:
    program = seal.build(load_policy().features, "enforce").process
    assert program is not None
    # Without its listener the kernel answers a notification with ENOSYS; what reports must be able to write.
    for number, made, outcome in [
        (syscalls.number_of("getppid", NATIVE), (0,) * 6, actions.NOTIFY),
        (syscalls.number_of("socket", NATIVE), (2, 1, 0, 0, 0, 0), actions.NOTIFY),
        (syscalls.number_of("clone3", NATIVE), (0,) * 6, actions.errno(errno.ENOSYS)),
        (syscalls.number_of("getpid", NATIVE), (0,) * 6, actions.ALLOW),
    ]:
        assert number is not None
        result = bpf.run(program.code, SeccompData(number, ARCH, 0, made))
        assert result & 0xFFFF0000 == outcome & 0xFFFF0000, syscalls.name_of(number, NATIVE)
        answered, _ = kernel.ask(program.code, [[number, *made]])
        if outcome == actions.ALLOW:
            assert answered[0][0] == "returned"
        else:
            assert answered == [["errno", errno.ENOSYS]]


def test_a_program_is_printed() -> None:
    code = only_for_getppid([(bpf.LD | bpf.ABS, 0, 0, 20), (bpf.ALU | bpf.NEG, 0, 0, 0), *TELL_A])
    assert [bpf.render(instruction) for instruction in bpf.decode(code)] == [
        "ld [0]  ; number",
        f"jeq {GETPPID:#x}, 1, 0",
        "ret allow",
        "ld [20]  ; argument 0 high",
        "neg",
        "and 0xfff",
        "or 0x50000",
        "ret a",
    ]


@pytest.mark.parametrize("opcode", sorted(bpf.OPCODES), ids=hex)
def test_every_opcode_can_be_printed(opcode: int) -> None:
    text = bpf.render(bpf.Instruction(opcode, 0, 0, 4))
    assert "opcode" not in text
