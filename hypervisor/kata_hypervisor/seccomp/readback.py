"""The filters that are installed on a thread, read back from the kernel as they were given to it.

The thread is seized and stopped for the moment of reading, and let go again whatever happens; a call that it
waits in may return EINTR to it. A process cannot read its own threads. Sources: ptrace(2) (PTRACE_SEIZE,
PTRACE_INTERRUPT, PTRACE_SECCOMP_GET_FILTER); get_nth_filter() and seccomp_get_filter() in kernel/seccomp.c:
CONFIG_CHECKPOINT_RESTORE, CAP_SYS_ADMIN in the first user namespace, and a reader under no filter are needed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

from kata_hypervisor import libc
from kata_hypervisor.errors import SealError

PATIENCE = 30.0  # seconds; a running thread stops as soon as it gets a processor, a frozen one never

_DETACH, _SEIZE, _INTERRUPT, _GET_FILTER = 17, 0x4206, 0x4207, 0x420C
_WALL = 0x40000000  # waitpid's __WALL: the threads of any process
_INSTRUCTION_SIZE = 8
_POLL_INTERVAL = 0.0005
_MOMENT = 0.0002  # seconds in which nearly every thread stops, and which are not slept away


def read_filters(tid: int) -> list[bytes]:
    """The programs on a thread, the oldest first, 8 bytes an instruction; none when it has no filter.

    Raises:
        ProcessLookupError: there is no such thread.
        SealError: the kernel does not hand them out to this process; the message says why.
    """
    # The stop is one that only its tracer sees.
    try:
        libc.ptrace(_SEIZE, tid)
    except PermissionError as error:
        raise SealError(f"the filters of thread {tid} cannot be read: {_why_not_seized(tid)}") from error
    pending = 0
    try:
        libc.ptrace(_INTERRUPT, tid)
        pending = _wait_for_stop(tid)
        return _read_stopped(tid)
    finally:
        _let_go(tid, pending)


def _read_stopped(tid: int) -> list[bytes]:
    programs: list[bytes] = []
    while (program := _read_filter(tid, len(programs))) is not None:
        programs.append(program)
    return programs


def _wait_for_stop(tid: int) -> int:
    """Wait until the thread stops. Returns the signal that it stopped to receive and is still owed, or 0.

    Raises:
        ProcessLookupError: it ended instead.
        SealError: it does not stop (frozen, or in an uninterruptible wait).
    """
    begin = time.monotonic()
    while True:
        waited, status = os.waitpid(tid, _WALL | os.WNOHANG)
        if waited and not os.WIFSTOPPED(status):
            raise ProcessLookupError(errno.ESRCH, f"thread {tid} ended")
        if waited:
            stopped_by_event = status >> 16
            return 0 if stopped_by_event else os.WSTOPSIG(status)
        passed = time.monotonic() - begin
        if passed > PATIENCE:
            raise SealError(
                f"the filters of thread {tid} cannot be read: it does not stop; "
                "it is frozen, or waits for a device"
            )
        if passed > _MOMENT:
            time.sleep(_POLL_INTERVAL)
        else:
            os.sched_yield()


def _let_go(tid: int, pending: int) -> None:
    """Detach. A thread that never stopped cannot be detached: it is let go when this process ends."""
    try:
        libc.detach_thread(_DETACH, tid, pending)
    except ProcessLookupError:
        return


def _read_filter(tid: int, index: int) -> bytes | None:
    """The program with this index, the oldest is 0; None when there is no such filter."""
    try:
        length = libc.ptrace(_GET_FILTER, tid, address=index)
        program = ctypes.create_string_buffer(length * _INSTRUCTION_SIZE)
        libc.ptrace(_GET_FILTER, tid, address=index, buffer=program)
    except OSError as error:
        if error.errno == errno.ENOENT or (error.errno == errno.EINVAL and not _is_filtered(tid)):
            return None
        raise SealError(f"the filters of thread {tid} cannot be read: {_why_not_read(error)}") from error
    return program.raw


def _is_filtered(tid: int) -> bool:
    return _status_field(str(tid), "Seccomp") == "2"


def _status_field(tid: str, name: str) -> str:
    """A field of /proc/TID/status; a thread's directory is there although no listing shows it."""
    with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return fields.get(name, "")


def _why_not_seized(tid: int) -> str:
    tracer = _status_field(str(tid), "TracerPid")
    if tracer not in ("", "0"):
        return f"process {tracer} traces it already"
    if tid == os.getpid() or os.path.exists(f"/proc/self/task/{tid}"):
        return "a process cannot read its own threads"
    return "this process may not trace it; run it as root, with CAP_SYS_PTRACE"


def _why_not_read(error: OSError) -> str:
    """The reason behind an errno of PTRACE_SECCOMP_GET_FILTER."""
    if error.errno == errno.EACCES and _is_filtered(os.getpid()):
        return "the reader is itself under a seccomp filter; run it where none is in force"
    if error.errno == errno.EACCES:
        return "the reader lacks CAP_SYS_ADMIN; run it as root on the host, outside a user namespace"
    if error.errno in (errno.EINVAL, errno.EIO):
        return "this kernel was built without CONFIG_CHECKPOINT_RESTORE"
    if error.errno == errno.EMEDIUMTYPE:
        return "it has a filter that is no classic BPF program"
    return str(error)
