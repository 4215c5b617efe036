"""Whether a thread's filters refuse anything: a filter that allows every call looks the same to /proc.

The filters themselves are read back from the kernel, and run on calls that no VMM needs once it is confined.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from kata_hypervisor.seccomp import bpf, readback, syscalls

# A VMM's threads share programs, some of a thousand instructions: each is checked once.
_decode = functools.lru_cache(maxsize=16)(bpf.decode)

TRIED = ("execve", "ptrace", "mount", "bpf", "kexec_load", "init_module")


def refuse_some(programs: Sequence[bytes], arch: str | None = None) -> bool:
    """Whether filters that are stacked on one thread refuse at least one of the calls that are tried."""
    machine = arch or syscalls.native()
    numbers = [number for name in TRIED if (number := syscalls.number_of(name, machine)) is not None]
    calls = [bpf.SeccompData(number, bpf.AUDIT_ARCH[machine]).words() for number in numbers]
    decoded = [_decode(program) for program in programs]
    return any(
        not bpf.is_allowed(bpf.strictest(bpf.execute(program, call) for program in decoded)) for call in calls
    )


def are_effective(tid: int, beyond: int = 0) -> bool:
    """Whether the filters on a thread refuse some call. beyond: how many, the oldest, are not asked.

    Raises:
        ProcessLookupError: there is no such thread.
        SealError: the kernel does not hand them out to this process; the message says why.
    """
    programs = readback.read_filters(tid)[beyond:]
    return bool(programs) and refuse_some(programs)
