"""Calls that a filter hands to a supervisor: the kernel's seccomp user notifications.

Standard library only and cheap: the broker imports it in its poll loop.

A listener's descriptor is readable when a call waits, and hangs up (POLLHUP) when no process is under its
filter any more. Sources: seccomp_unotify(2), and the kernel's include/uapi/linux/seccomp.h:

    struct seccomp_notif {u64 id; u32 pid; u32 flags; struct seccomp_data data;}
    struct seccomp_data {s32 nr; u32 arch; u64 instruction_pointer; u64 args[6];}
    struct seccomp_notif_resp {u64 id; s64 val; s32 error; u32 flags;}
"""

from __future__ import annotations

import errno
import fcntl
import struct

_REQUEST = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_COOKIE = struct.Struct("=Q")
_FLAG_CONTINUE = 1  # Linux 5.5
_SYNC_WAKE_UP = 1  # Linux 6.6

SIZES = (_REQUEST.size, _RESPONSE.size, 64)
"""Bytes of notification, response and data as above; SECCOMP_GET_NOTIF_SIZES returns the kernel's."""

_WRITE, _READ_WRITE = 1, 3


def _ioctl_number(direction: int, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h, with seccomp's magic '!'."""
    return direction << 30 | size << 16 | ord("!") << 8 | number


_RECEIVE = _ioctl_number(_READ_WRITE, 0, _REQUEST.size)
_SEND = _ioctl_number(_READ_WRITE, 1, _RESPONSE.size)
_ID_VALID = _ioctl_number(_WRITE, 2, _COOKIE.size)
_SET_FLAGS = _ioctl_number(_WRITE, 4, _COOKIE.size)


class Call:
    """A system call that waits in the kernel for an answer.

    id: the kernel's cookie for it. tid: the thread that made it, in the reader's pid namespace, 0 when it is
    not visible there. number, arch: the call, of the AUDIT_ARCH_* convention. arguments: all six.
    """

    __slots__ = ("arch", "arguments", "id", "instruction_pointer", "number", "tid")

    def __init__(
        self,
        id: int,  # noqa: A002
        tid: int,
        number: int,
        arch: int,
        instruction_pointer: int,
        arguments: tuple[int, ...],
    ) -> None:
        self.id = id
        self.tid = tid
        self.number = number
        self.arch = arch
        self.instruction_pointer = instruction_pointer
        self.arguments = arguments

    def __repr__(self) -> str:
        arguments = ", ".join(map(hex, self.arguments))
        return f"Call(id={self.id:#x}, tid={self.tid}, number={self.number}, arguments=({arguments}))"


def receive(listener: int) -> Call | None:
    """Take the next waiting call; wait for one when there is none.

    Returns None when nothing came of it: the caller has died or was interrupted meanwhile (ENOENT), this
    process received a signal (EINTR), or no process is under the filter any more. Poll again then.

    Raises:
        OSError: the descriptor is no listener, or this kernel's structure is another (EINVAL, ENOTTY).
    """
    buffer = bytearray(_REQUEST.size)  # the kernel insists on zeros
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    cookie, tid, _flags, number, arch, pointer, *arguments = _REQUEST.unpack(buffer)
    return Call(cookie, tid, number, arch, pointer, tuple(arguments))


def refuse(listener: int, call: Call, number: int) -> bool:
    """Answer the call with an errno; it is not made. Returns whether its caller was still there.

    Raises:
        BlockingIOError: the call has an answer already (EINPROGRESS).
    """
    return _answer(listener, _RESPONSE.pack(call.id, 0, -number, 0))


def let_through(listener: int, call: Call) -> bool:
    """Have the kernel make the call (Linux 5.5). Returns whether its caller was still there.

    The kernel reads the caller's memory again: this is no decision about what a pointer points to.
    """
    return _answer(listener, _RESPONSE.pack(call.id, 0, 0, _FLAG_CONTINUE))


def is_waiting(listener: int, call: Call) -> bool:
    """Whether the caller still waits: if so, what was read of /proc/TID before is the caller's."""
    try:
        fcntl.ioctl(listener, _ID_VALID, _COOKIE.pack(call.id))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def wake_synchronously(listener: int) -> bool:
    """Ask the kernel to run both sides on one processor, as a function call would (Linux 6.6).

    Returns whether this kernel can; nothing else changes without it.
    """
    try:
        fcntl.ioctl(listener, _SET_FLAGS, _SYNC_WAKE_UP)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTTY):
            return False
        raise
    return True


def _answer(listener: int, response: bytes) -> bool:
    try:
        fcntl.ioctl(listener, _SEND, bytearray(response))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True
