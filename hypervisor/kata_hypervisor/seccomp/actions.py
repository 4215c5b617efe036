"""What a filter can answer: the values of SECCOMP_RET_* (linux/seccomp.h), an errno in the low 16 bits."""

from __future__ import annotations

import errno as _errno

KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
NOTIFY = 0x7FC00000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000

_NAMES = {
    KILL_PROCESS: "kill process",
    KILL_THREAD: "kill thread",
    TRAP: "trap",
    ERRNO: "errno",
    NOTIFY: "notify",
    TRACE: "trace",
    LOG: "log",
    ALLOW: "allow",
}


def errno(number: int) -> int:
    """The action that answers a call with an error, without making it."""
    return ERRNO | (number & 0xFFFF)


def describe(action: int) -> str:
    """The action as people read it: "allow", "errno ENOSYS", "notify" ..."""
    kind, data = action & 0xFFFF0000, action & 0xFFFF
    if kind == ERRNO:
        return f"errno {_errno.errorcode.get(data, data)}"
    return _NAMES.get(kind, f"{action:#x}")
