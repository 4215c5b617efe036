"""Filters that refuse nothing, and those that do."""

from __future__ import annotations

import struct

import pytest

from kata_hypervisor.seccomp import bpf, effectiveness, syscalls

ALLOW, ERRNO, KILL, LOG = 0x7FFF0000, 0x00050001, 0x80000000, 0x7FFC0000


def always(action: int) -> bytes:
    return struct.pack("=HBBI", bpf.RET | bpf.K, 0, 0, action)


def on(name: str, action: int) -> bytes:
    """A filter with an action for one call, which allows all others."""
    number = syscalls.number_of(name, "x86_64")
    assert number is not None
    load = struct.pack("=HBBI", bpf.LD | bpf.ABS, 0, 0, 0)
    compare = struct.pack("=HBBI", bpf.JMP | bpf.JEQ, 0, 1, number)
    return load + compare + always(action) + always(ALLOW)


@pytest.mark.parametrize(
    ("programs", "effective"),
    [
        ([], False),
        ([always(ALLOW)], False),
        ([always(ALLOW), always(ALLOW)], False),
        ([always(LOG)], False),
        ([on("execve", LOG)], False),
        ([on("getpid", KILL)], False),
        ([always(KILL)], True),
        ([on("execve", ERRNO)], True),
        ([on("ptrace", KILL)], True),
        ([always(ALLOW), on("mount", ERRNO)], True),
    ],
)
def test_what_is_effective(programs: list[bytes], effective: bool) -> None:
    assert effectiveness.refuse_some(programs, "x86_64") is effective
