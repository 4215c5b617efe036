"""Installing a compiled filter, from its bytes, with seccomp(2).

A sealed process can put a second filter on a thread: nothing is loaded for it. Source: seccomp(2),
linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from kata_hypervisor import libc
from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import actions

INSTRUCTION = 8
MAX_INSTRUCTIONS = 4096

_SET_MODE_FILTER, _GET_ACTION_AVAIL, _GET_NOTIF_SIZES = 1, 2, 3
_TSYNC, _LOG, _NEW_LISTENER, _TSYNC_ESRCH = 1, 2, 8, 16
_ALLOW_ALL = struct.pack("<HBBI", 0x06, 0, 0, actions.ALLOW)


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
    if not sealed:
        try:
            libc.give_up_privileges()
        except OSError as error:
            raise SealError(f"cannot give up new privileges: {error.strerror}") from error
    flags = _LOG if log else 0
    if all_threads:
        flags |= _TSYNC | (_TSYNC_ESRCH if listener else 0)
    if listener:
        flags |= _NEW_LISTENER
    result, number = _set_filter(flags, code)
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
    result, number = _call(_GET_ACTION_AVAIL, 0, value)
    if result == 0:
        return True
    if number == errno.EOPNOTSUPP:
        return False
    raise SealError(f"cannot ask the kernel what a seccomp filter may answer: {os.strerror(number)}")


def notification_sizes() -> tuple[int, int, int] | None:
    """The bytes of struct seccomp_notif, seccomp_notif_resp and seccomp_data; None where there are none."""
    sizes = (ctypes.c_uint16 * 3)()
    result, _ = _call(_GET_NOTIF_SIZES, 0, sizes)
    return (sizes[0], sizes[1], sizes[2]) if result == 0 else None


def _set_filter(flags: int, code: bytes) -> tuple[int, int]:
    return _call(_SET_MODE_FILTER, flags, _Program(len(code) // INSTRUCTION, code))


def _call(
    operation: int, flags: int, argument: _Program | ctypes.Array[ctypes.c_uint16] | ctypes.c_uint32
) -> tuple[int, int]:
    """seccomp(2): its result, and errno where that is -1."""
    try:
        return libc.seccomp(operation, flags, argument), 0
    except NotImplementedError:
        return -1, errno.ENOSYS
    except OSError as error:
        return -1, error.errno or 0


def _explain(result: int, number: int, *, listener: bool) -> SealError:
    attempt = "cannot install the seccomp filter"
    if result > 0:
        return SealError(f"{attempt}: {_unreachable(result)}")
    if number == errno.ESRCH:
        # The same question without a listener is answered with the thread's id. Should the thread be gone by
        # now, this filter, which allows everything, is what stays.
        thread, _ = _set_filter(_TSYNC, _ALLOW_ALL)
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
    return f"thread {name} has a filter of its own, which the other threads do not have"
