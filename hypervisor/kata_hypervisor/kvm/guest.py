"""The probe's guest: what a kernel does in its first milliseconds, and a KVM that only emulates cannot.

All of it runs in ring 0 of 64-bit mode. A KVM on VT-x or SVM lets the processor execute it. A paravirtual one
(such as PVM, module kvm_pvm, which needs no hardware support) runs a guest's ring 0 through the instruction
emulator of KVM, which knows integers, system registers and moves of vectors, but no vector or x87 arithmetic,
no MXCSR and no cmpxchg16b: KVM_RUN ends with KVM_EXIT_INTERNAL_ERROR, suberror 1 (emulation failure). Seen on
Linux 6.18 with kvm_pvm: integers and model-specific registers pass; each of the others fails, and so do
popcnt and xgetbv. Stock kernels execute several of these before their console works.
"""

from __future__ import annotations

from dataclasses import dataclass

RESULT_PORT = 0x10

OUT_EAX = bytes([0xE7, RESULT_PORT])  # out RESULT_PORT, eax
HALT = bytes.fromhex("f4 eb fd")  # hlt; jmp to it


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing a processor can do. code: leaves its result in eax, which must be `expected`."""

    name: str
    code: bytes
    expected: int


TRIALS = (
    Trial(
        "integer arithmetic",
        bytes.fromhex("b8 2a 00 00 00"),  # mov eax, 42
        42,
    ),
    Trial(
        "model-specific registers",
        bytes.fromhex(
            "b9 82 00 00 c0"  # mov ecx, LSTAR
            "b8 00 10 00 00 31 d2 0f 30"  # mov eax, 0x1000; xor edx, edx; wrmsr
            "31 c0 0f 32"  # xor eax, eax; rdmsr
        ),
        0x1000,
    ),
    Trial(
        "SSE2 arithmetic",
        bytes.fromhex(
            "b8 15 00 00 00"  # mov eax, 21
            "66 0f 6e c0 66 0f fe c0 66 0f 7e c0"  # movd xmm0, eax; paddd xmm0, xmm0; movd eax, xmm0
        ),
        42,
    ),
    Trial(
        "cmpxchg16b",
        bytes.fromhex(
            "31 c0 31 d2 bb 2a 00 00 00 31 c9"  # rdx:rax = 0, rcx:rbx = 42
            "50 50 f0 48 0f c7 0c 24 58 5a"  # push rax; push rax; lock cmpxchg16b [rsp]; pop rax; pop rdx
        ),
        42,
    ),
    Trial(
        "the MXCSR register",
        bytes.fromhex("68 80 1f 00 00 0f ae 14 24 0f ae 1c 24 58"),  # push 0x1f80; ldmxcsr; stmxcsr; pop rax
        0x1F80,
    ),
    Trial(
        "x87 arithmetic",
        bytes.fromhex("d9 e8 d8 c0 50 db 1c 24 58"),  # fld1; fadd st, st; push rax; fistp [rsp]; pop rax
        2,
    ),
)


def program() -> bytes:
    """Return the guest's code: each trial, then its result on the port, then a halt."""
    return b"".join(trial.code + OUT_EAX for trial in TRIALS) + HALT
