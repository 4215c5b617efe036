"""Classic BPF as seccomp uses it: decode, check as the kernel checks, run, and print.

A program is an array of struct sock_filter {u16 code; u8 jt; u8 jf; u32 k}, 8 bytes each, in the machine's
byte order. It sees struct seccomp_data {s32 nr; u32 arch; u64 instruction_pointer; u64 args[6]} as 16 words
of 32 bits, and returns an action in its upper 16 bits and that action's data in its lower 16.

Sources: the kernel's include/uapi/linux/filter.h and seccomp.h, bpf_check_classic() and bpf_convert_filter()
in net/core/filter.c, seccomp_check_filter() and seccomp_run_filters() in kernel/seccomp.c.

Loads little: each pod's broker imports it, and `dataclasses` and `typing` would be most of what that costs.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp.actions import ALLOW, LOG, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import NamedTuple

WORD = 0xFFFFFFFF
MAX_INSTRUCTIONS = 4096
MEMORY_WORDS = 16
DATA_SIZE = 64

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}

# Opcodes. LD and LDX fill the registers A and X, ST and STX store them.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
IMM, ABS, MEM, LEN = 0x00, 0x20, 0x60, 0x80
K, X, A = 0x00, 0x08, 0x10
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, XOR = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xA0
JA, JEQ, JGT, JGE, JSET = 0x00, 0x10, 0x20, 0x30, 0x40
TAX, TXA = 0x00, 0x80

ARITHMETIC = {ADD: "add", SUB: "sub", MUL: "mul", DIV: "div", OR: "or", AND: "and", LSH: "lsh", RSH: "rsh"}
ARITHMETIC[XOR] = "xor"
JUMPS = {JEQ: "jeq", JGT: "jgt", JGE: "jge", JSET: "jset"}

LOADS = frozenset({LD | ABS, LD | IMM, LD | MEM, LD | LEN, LDX | IMM, LDX | MEM, LDX | LEN})
_MEMORY_READS = frozenset({LD | MEM, LDX | MEM})
_TOUCH_MEMORY = _MEMORY_READS | {ST, STX}
_SHIFTS = frozenset({ALU | LSH | K, ALU | RSH | K})
_RETURNS = frozenset({RET | K, RET | A})
OPCODES = (
    LOADS
    | _RETURNS
    | {ST, STX, JMP | JA, ALU | NEG, MISC | TAX, MISC | TXA}
    | {ALU | operation | source for operation in ARITHMETIC for source in (K, X)}
    | {JMP | test | source for test in JUMPS for source in (K, X)}
)

_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=iIQ6Q")
_DATA_WORDS = struct.Struct("=16I")


if TYPE_CHECKING:

    class Instruction(NamedTuple):
        """One instruction: opcode, offsets of a jump if true and if false (from the next one), operand."""

        code: int
        jt: int
        jf: int
        k: int

else:
    Instruction = namedtuple("Instruction", ("code", "jt", "jf", "k"))


class SeccompData:
    """What a filter sees of a call. number: signed 32 bits. arguments: six unsigned 64-bit numbers."""

    __slots__ = ("arch", "arguments", "instruction_pointer", "number")

    def __init__(
        self,
        number: int,
        arch: int,
        instruction_pointer: int = 0,
        arguments: Sequence[int] = (0, 0, 0, 0, 0, 0),
    ) -> None:
        self.number = number
        self.arch = arch
        self.instruction_pointer = instruction_pointer
        self.arguments = arguments

    def words(self) -> tuple[int, ...]:
        """The sixteen 32-bit words that a program loads, in the machine's byte order."""
        number = (self.number + 0x80000000) % 0x100000000 - 0x80000000
        packed = _DATA.pack(number, self.arch, self.instruction_pointer, *self.arguments)
        return _DATA_WORDS.unpack(packed)


def decode(code: bytes) -> tuple[Instruction, ...]:
    """The instructions of a program, checked as the kernel checks them before it takes a program.

    Raises:
        PolicyError: the kernel would refuse it (EINVAL); the message names the instruction.
    """
    if not code or len(code) % _INSTRUCTION.size or len(code) > MAX_INSTRUCTIONS * _INSTRUCTION.size:
        raise PolicyError(
            f"a seccomp program has 1 to {MAX_INSTRUCTIONS} instructions of 8 bytes; "
            f"this one is {len(code)} bytes long"
        )
    program = tuple(map(Instruction._make, _INSTRUCTION.iter_unpack(code)))
    for place, instruction in enumerate(program):
        fault = _fault(instruction, len(program) - place - 1)
        if fault:
            raise PolicyError(f"instruction {place} of the seccomp program ({render(instruction)}): {fault}")
    if program[-1].code not in _RETURNS:
        raise PolicyError(f"the last instruction of the seccomp program ({render(program[-1])}) is no return")
    _check_memory(program)
    return program


def encode(program: Iterable[Sequence[int]]) -> bytes:
    """The bytes of instructions given as (code, jt, jf, k)."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _fault(instruction: Instruction, following: int) -> str | None:
    """What the kernel finds wrong with one instruction that has so many instructions after it."""
    code, jt, jf, k = instruction
    if code not in OPCODES:
        return f"opcode {code:#x} is not allowed in seccomp"
    if code == LD | ABS:
        return None if k < DATA_SIZE and k % 4 == 0 else f"it loads at {k}, which is no word of the data"
    if code == ALU | DIV | K and k == 0:
        return "it divides by zero"
    if code in _SHIFTS and k >= 32:
        return "it shifts by 32 bits or more"
    if code in _TOUCH_MEMORY and k >= MEMORY_WORDS:
        return f"there are {MEMORY_WORDS} words of memory"
    if code == JMP | JA:
        return None if k < following else "it jumps out of the program"
    if code & 7 == JMP and max(jt, jf) >= following:
        return "it jumps out of the program"
    return None


def _check_memory(program: Sequence[Instruction]) -> None:
    """Refuse a program that could read a word of memory before writing it, by the kernel's own rule."""
    masks = [0xFFFF] * len(program)
    written = 0
    for place, (code, jt, jf, k) in enumerate(program):
        written &= masks[place]
        if code in (ST, STX):
            written |= 1 << k
        elif code in _MEMORY_READS and not written & 1 << k:
            raise PolicyError(
                f"instruction {place} of the seccomp program ({render(program[place])}): "
                "it reads memory that nothing has written"
            )
        elif code & 7 == JMP:
            for target in (k,) if code == JMP | JA else (jt, jf):
                masks[place + 1 + target] &= written
            written = 0xFFFF


_COMPUTE: dict[int, Callable[[int, int], int]] = {
    ADD: lambda left, right: (left + right) & WORD,
    SUB: lambda left, right: (left - right) & WORD,
    MUL: lambda left, right: (left * right) & WORD,
    DIV: lambda left, right: left // right,
    OR: lambda left, right: left | right,
    AND: lambda left, right: left & right,
    LSH: lambda left, right: (left << (right & 31)) & WORD,  # the machine shifts by the lower five bits
    RSH: lambda left, right: left >> (right & 31),
    XOR: lambda left, right: left ^ right,
}
_COMPARE: dict[int, Callable[[int, int], bool]] = {
    JEQ: lambda left, right: left == right,
    JGT: lambda left, right: left > right,
    JGE: lambda left, right: left >= right,
    JSET: lambda left, right: bool(left & right),
}


def compute(operation: int, left: int, right: int) -> int | None:
    """One operation on unsigned 32-bit words; None for a division by zero, which ends the program with 0."""
    if operation == DIV and right == 0:
        return None
    return _COMPUTE[operation](left, right)


def compare(test: int, left: int, right: int) -> bool:
    """One jump's test on unsigned 32-bit words."""
    return _COMPARE[test](left, right)


def run(code: bytes, data: SeccompData) -> int:
    """Run a program on one call and return what it returns: action and data, 32 bits.

    Raises:
        PolicyError: the program is not one that the kernel takes.
    """
    return execute(decode(code), data.words())


def execute(program: Sequence[Instruction], words: Sequence[int]) -> int:
    """Run a decoded program on the sixteen words of a call."""
    a = x = place = 0
    memory = [0] * MEMORY_WORDS
    while True:
        code, jt, jf, k = program[place]
        place += 1
        kind = code & 7
        if kind == JMP:
            if code == JMP | JA:
                place += k
            else:
                place += jt if compare(code & 0xF0, a, x if code & X else k) else jf
        elif kind == LD:
            a = _loaded(code, k, words, memory)
        elif kind == LDX:
            x = _loaded(code, k, words, memory)
        elif kind == RET:
            return a if code & A else k
        elif kind == ST:
            memory[k] = a
        elif kind == STX:
            memory[k] = x
        elif kind == ALU:
            if code == ALU | NEG:
                a = -a & WORD
                continue
            result = compute(code & 0xF0, a, x if code & X else k)
            if result is None:
                return 0
            a = result
        elif code == MISC | TAX:
            x = a
        else:
            a = x


def _loaded(code: int, k: int, words: Sequence[int], memory: Sequence[int]) -> int:
    mode = code & 0xE0
    if mode == ABS:
        return words[k // 4]
    if mode == MEM:
        return memory[k]
    return DATA_SIZE if mode == LEN else k


def strictest(results: Iterable[int]) -> int:
    """What the kernel does with the returns of several filters on one thread, the newest first."""
    final = ALLOW
    for result in results:
        if _rank(result) < _rank(final):
            final = result
    return final


def _rank(result: int) -> int:
    """The kernel compares actions as signed numbers, so that killing the process comes first."""
    action = result & 0xFFFF0000
    return action - 0x100000000 if action & 0x80000000 else action


def is_allowed(result: int) -> bool:
    """Whether the kernel makes the call without asking anybody."""
    return result & 0xFFFF0000 in (ALLOW, LOG)


_FIELDS: tuple[str, ...] = ("number", "arch", "ip low", "ip high")
_FIELDS += tuple(f"argument {index} {half}" for index in range(6) for half in ("low", "high"))


def render(instruction: Instruction) -> str:
    """One instruction as text; a jump's targets are counted from the next one."""
    code, jt, jf, k = instruction
    if code not in OPCODES:
        return f"opcode {code:#x} jt {jt} jf {jf} k {k:#x}"
    kind, operand = code & 7, "x" if code & X else f"{k:#x}"
    match kind:
        case 0 | 1:
            return f"{'ldx' if kind == LDX else 'ld'} {_source(code, k)}"
        case 2 | 3:
            return f"{'stx' if kind == STX else 'st'} M[{k}]"
        case 4:
            return "neg" if code == ALU | NEG else f"{ARITHMETIC[code & 0xF0]} {operand}"
        case 5 if code == JMP | JA:
            return f"ja {k}"
        case 5:
            return f"{JUMPS[code & 0xF0]} {operand}, {jt}, {jf}"
        case 6:
            return "ret a" if code & A else f"ret {describe(k)}"
        case _:
            return "tax" if code == MISC | TAX else "txa"


def _source(code: int, k: int) -> str:
    match code & 0xE0:
        case 0x20:
            return f"[{k}]" + (f"  ; {_FIELDS[k // 4]}" if k < DATA_SIZE and k % 4 == 0 else "")
        case 0x60:
            return f"M[{k}]"
        case 0x80:
            return "length"
        case _:
            return f"{k:#x}"
