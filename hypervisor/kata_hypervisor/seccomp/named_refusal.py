"""Refusals that name the call: an errno of ours, which no call of the kernel returns, with the number in it.

For a process that nobody supervises, because it supervises the others. What it may not call is not made, it
learns which call that was, and ends. Errnos of the kernel end below 600 (include/linux/errno.h); the C
library takes whatever is up to 4095 (MAX_ERRNO) for an error. Standard library only: the broker uses this.
"""

from __future__ import annotations

from kata_hypervisor.seccomp import actions, syscalls

FIRST = 0x800
_NUMBERS = 0x7FF

UNNAMED = actions.errno(FIRST)
"""The default action of a program that is compiled for `name_refusals`."""


def name_refusals(code: bytes) -> bytes:
    """The same program, where each return of UNNAMED has the number of the call in its errno."""
    from kata_hypervisor.seccomp import bpf  # which the broker, who asks for a name only, cannot load

    program = list(bpf.decode(code))
    end = len(program)
    for place, instruction in enumerate(program):
        if instruction.code == bpf.RET | bpf.K and instruction.k == UNNAMED:
            program[place] = bpf.Instruction(bpf.JMP | bpf.JA, 0, 0, end - place - 1)
    answer = (
        (bpf.LD | bpf.ABS, 0, 0, 0),  # the call's number
        (bpf.ALU | bpf.AND | bpf.K, 0, 0, _NUMBERS),
        (bpf.ALU | bpf.OR | bpf.K, 0, 0, UNNAMED),
        (bpf.RET | bpf.A, 0, 0, 0),
    )
    return bpf.encode([*program, *answer])


def refused_call(number: int | None) -> str:
    """The call that an errno names, with its number; empty for an errno of the kernel's."""
    if number is None or not FIRST <= number <= FIRST | _NUMBERS:
        return ""
    call = number & _NUMBERS
    return f"{syscalls.name_of(call, syscalls.native()) or 'an unknown call'} ({call})"
