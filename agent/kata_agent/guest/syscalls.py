"""The system calls that Python's standard library lacks: the agent room's only use of ctypes.

Each raises OSError that names its operands, and goes on after a signal that has interrupted it, as Python's
own do (PEP 475). With `use_errno` ctypes exchanges the thread's errno with a copy of its own right after each
call, before anything else of Python runs: `ctypes.get_errno` is about that call.
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MNT_DETACH = 2
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
RB_POWER_OFF = 0x4321FEDC
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    operands = (
        _path(source),
        _path(target),
        _path(fstype),
        ctypes.c_ulong(flags),
        _path(data) if data else None,
    )
    # SAFETY: all pointers are NUL-terminated byte strings that live until the call returns.
    _call(f"mount {fstype or 'bind'} {source} on {target}", _libc.mount, *operands)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    # SAFETY: the pointer is a NUL-terminated byte string that lives until the call returns.
    _call(f"unmount {target}", _libc.umount2, _path(target), flags)


def unshare(flags: int) -> None:
    """unshare(2): the calling thread leaves the namespaces that flags name."""
    # SAFETY: no argument is a pointer.
    _call(f"unshare {flags:#x}", _libc.unshare, flags)


def reboot(command: int) -> None:
    """reboot(2); returns only on failure."""
    # SAFETY: the C library's reboot(3) has one argument, which is no pointer.
    _call("reboot", _libc.reboot, ctypes.c_int(command - (1 << 32) if command >> 31 else command))


def become_subreaper() -> None:
    """Take in the orphans among this process's descendants, as PID 1 does anyway."""
    # SAFETY: no argument is a pointer.
    _call("become a subreaper", _libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _path(text: str) -> bytes:
    if "\0" in text:
        raise ValueError(f"NUL in {text!r}")
    return os.fsencode(text)


def _call(what: str, function: Any, *arguments: object) -> None:
    while function(*arguments) < 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, f"{what}: {os.strerror(number)}")
