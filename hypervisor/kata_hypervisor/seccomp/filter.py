"""Installing a compiled filter, from its bytes, with seccomp(2).

Everything that ctypes makes on first use is made when this module is imported, so that a sealed process can
put a second filter on a thread. Source: seccomp(2), prctl(2), linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import actions, syscalls

INSTRUCTION = 8
MAX_INSTRUCTIONS = 4096

_SET_MODE_FILTER, _GET_ACTION_AVAIL, _GET_NOTIF_SIZES = 1, 2, 3
_TSYNC, _LOG, _NEW_LISTENER, _TSYNC_ESRCH = 1, 2, 8, 16
_PR_SET_NO_NEW_PRIVS = 38
_ALLOW_ALL = struct.pack("<HBBI", 0x06, 0, 0, actions.ALLOW)

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_syscall = _libc.syscall
_syscall.argtypes = [ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p]
_syscall.restype = ctypes.c_long
_NUMBER = (
    syscalls.number_of("seccomp", syscalls.native()) if syscalls.native() in syscalls.ARCHITECTURES else None
)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install(
    code: bytes, *, all_threads: bool, listener: bool, log: bool = False, sealed: bool = False
) -> int | None:
    """Put a filter on the calling thread, or on every thread of the process; it cannot be taken off.

    code: an array of struct sock_filter. all_threads: on each thread that there is, which are then equal (new
    ones inherit it in any case). listener: return a descriptor, close-on-exec, that receives a notification
    for each call that the filter answers with `actions.NOTIFY`. log: have the kernel's audit log name each
    call that the filter stops, for actions in actions_logged. sealed: a filter is in force, with which new
    privileges were given up; it may not allow prctl.

    Raises:
        SealError: no filter was installed; the message says why. The process must not go on.
    """
    if not code or len(code) % INSTRUCTION or len(code) > MAX_INSTRUCTIONS * INSTRUCTION:
        raise SealError(
            f"cannot install a seccomp filter of {len(code)} bytes: it must have 1 to {MAX_INSTRUCTIONS} "
            f"instructions of {INSTRUCTION} bytes"
        )
    if not sealed and _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise SealError(f"cannot give up new privileges: {os.strerror(ctypes.get_errno())}")
    flags = _LOG if log else 0
    if all_threads:
        flags |= _TSYNC | (_TSYNC_ESRCH if listener else 0)
    if listener:
        flags |= _NEW_LISTENER
    result, number = _seccomp(_SET_MODE_FILTER, flags, code)
    if result == 0 and not listener:
        return None
    if result >= 0 and listener:
        return result
    raise _explain(result, number, listener=listener)


def action_available(action: int) -> bool:
    """Whether this kernel knows an action of a filter, a value of `actions`.

    Raises:
        SealError: this kernel has no seccomp(2), or does not let us ask.
    """
    value = ctypes.c_uint32(action & 0xFFFF0000)
    result, number = _call(_GET_ACTION_AVAIL, 0, ctypes.addressof(value))
    if result == 0:
        return True
    if number == errno.EOPNOTSUPP:
        return False
    raise SealError(f"cannot ask the kernel what a seccomp filter may answer: {os.strerror(number)}")


def notification_sizes() -> tuple[int, int, int] | None:
    """The bytes of struct seccomp_notif, seccomp_notif_resp and seccomp_data; None where there are none."""
    sizes = (ctypes.c_uint16 * 3)()
    result, _ = _call(_GET_NOTIF_SIZES, 0, ctypes.addressof(sizes))
    return (sizes[0], sizes[1], sizes[2]) if result == 0 else None


def _call(operation: int, flags: int, argument: int) -> tuple[int, int]:
    """seccomp(2): its result, and errno where that is -1."""
    if _NUMBER is None:
        return -1, errno.ENOSYS
    result = _syscall(_NUMBER, operation, flags, argument)
    return result, ctypes.get_errno() if result < 0 else 0


def _seccomp(operation: int, flags: int, code: bytes) -> tuple[int, int]:
    program = _Program(len(code) // INSTRUCTION, code)
    return _call(operation, flags, ctypes.addressof(program))


def _explain(result: int, number: int, *, listener: bool) -> SealError:
    attempt = "cannot install the seccomp filter"
    if result > 0:
        return SealError(f"{attempt}: {_unreachable(result)}")
    if number == errno.ESRCH:
        # The same question without a listener is answered with the thread's id. Should the thread be gone by
        # now, this filter, which allows everything, is what stays.
        thread, _ = _seccomp(_SET_MODE_FILTER, _TSYNC, _ALLOW_ALL)
        why = (
            _unreachable(thread) if thread > 0 else "a thread, which has ended since, had a filter of its own"
        )
        return SealError(f"{attempt}: {why}")
    if number == errno.EBUSY:
        return SealError(
            f"{attempt}: this process has one with a listener already, so that a second one could report to "
            "nobody (start it outside of the sandbox that supervises it)"
        )
    if number == errno.ENOSYS:
        return SealError(f"{attempt}: this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")
    if number == errno.EINVAL and listener and not action_available(actions.NOTIFY):
        return SealError(
            f"{attempt}: this kernel has no seccomp notifications (Linux 5.7 or later is needed)"
        )
    return SealError(f"{attempt}: {os.strerror(number)}")


def _unreachable(tid: int) -> str:
    try:
        with open(f"/proc/self/task/{tid}/comm", encoding="utf-8", errors="replace") as comm:
            name = f'"{comm.read().strip()}" (tid {tid})'
    except OSError:
        name = str(tid)
    return f"thread {name} has a filter of its own, which the others have not"
