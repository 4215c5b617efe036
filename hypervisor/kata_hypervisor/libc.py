"""What the hypervisor room calls in the C library, and asks of the kernel through it, with ctypes.

It is what Python's standard library lacks; libseccomp is pyseccomp's to load. Functions raise OSError unless
they say otherwise, and go on after a signal that has interrupted them, as Python's own do (PEP 475). With
`use_errno` ctypes exchanges the thread's errno with a copy of its own right after each call, before anything
else of Python runs, so that `ctypes.get_errno` is about the last call on this thread. What ctypes makes on
first use is made when this module is imported: a sealed process could not. Nor could it call uname(2).
Standard library only: the broker uses this module.

Sources: mmap(2), madvise(2), ioctl(2), ptrace(2), prctl(2), seccomp(2), tgkill(2), pidfd_getfd(2),
open_tree(2), mount_setattr(2), mallopt(3).
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MADV_REMOVE, MADV_HUGEPAGE, MADV_DONTDUMP = 9, 14, 16
MAP_FIXED = 0x10
PROT_NONE = 0

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38
_M_ARENA_MAX = -8
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 1 | os.O_CLOEXEC, 0x1000
_MOUNT_ATTR_RDONLY, _MS_PRIVATE = 0x1, 0x40000
NUMBERS = {
    "x86_64": {"tgkill": 234, "seccomp": 317, "open_tree": 428, "pidfd_getfd": 438, "mount_setattr": 442},
    "aarch64": {"tgkill": 131, "seccomp": 277, "open_tree": 428, "pidfd_getfd": 438, "mount_setattr": 442},
}
"""Of the calls that old C libraries have no function for; empty for an architecture that is not here."""

_NATIVE = NUMBERS.get(os.uname().machine, {})

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_ssize_t  # no address of a process is negative
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_ioctl = _libc.ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
_ptrace = _libc.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_syscall = _libc.syscall
_syscall.argtypes = [ctypes.c_long, *[ctypes.c_uint64] * 6]
_syscall.restype = ctypes.c_long


def _number(name: str) -> int:
    if name not in _NATIVE:
        raise NotImplementedError(f"{name}(2) has no number here for this architecture")
    return _NATIVE[name]


def _call(function: Any, *arguments: object) -> int:
    """Call a function of the library, until it has not been interrupted by a signal. Raises OSError."""
    while (result := int(function(*arguments))) < 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return result


def map_memory(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    """mmap(2) from the start of a file, or without one (-1); returns the address."""
    # SAFETY: the address is a wish, or with MAP_FIXED inside a mapping that the caller has made and that
    # nobody uses. The result is the caller's, until it calls `unmap_memory`.
    return _call(_mmap, address, size, protection, flags, descriptor, 0)


def unmap_memory(address: int, size: int) -> None:
    """munmap(2)."""
    # SAFETY: the range is a mapping of the caller's, made by `map_memory`; nothing points into it any more.
    _call(_munmap, address, size)


def advise_memory(address: int, size: int, advice: int) -> None:
    """madvise(2)."""
    # SAFETY: the range is part of a mapping of the caller's. Advice that drops pages is given for pages only
    # whose content nobody wants.
    _call(_madvise, address, size, advice)


def ioctl_address(descriptor: int, request: int, address: int) -> None:
    """ioctl(2) whose argument is a number of 64 bits: fcntl.ioctl takes none of 2**31 and more."""
    # SAFETY: the requests that this is for take the number itself, an address in the guest: no pointer.
    _call(_ioctl, descriptor, request, address)


def ptrace(
    request: int, tid: int, address: int = 0, buffer: ctypes.Array[ctypes.c_char] | None = None
) -> int:
    """ptrace(2) with a request that writes into a buffer, or that does not look at its data (0)."""
    # SAFETY: `address` is no pointer in these requests. The buffer is the caller's and lives until the call
    # returns; it has the size that the kernel has reported for the same thread, which is stopped meanwhile.
    data = ctypes.addressof(buffer) if buffer is not None else None
    return _call(_ptrace, request, tid, address or None, data)


def detach_thread(request: int, tid: int, signal: int) -> None:
    """ptrace(2) with a request whose data is the number of a signal."""
    # SAFETY: neither of the two arguments is a pointer in these requests.
    _call(_ptrace, request, tid, None, signal or None)


def die_with_parent(number: int) -> None:
    """Have the kernel send this signal when the thread that forked us ends."""
    # SAFETY: no argument is a pointer.
    _call(_prctl, _PR_SET_PDEATHSIG, number, 0, 0, 0)


def name_thread(name: str) -> None:
    """Have the kernel call this thread so; it keeps 15 bytes."""
    text = ctypes.create_string_buffer(name.encode())
    # SAFETY: the kernel reads the text, which ends with a zero, before the call returns.
    _call(_prctl, _PR_SET_NAME, ctypes.addressof(text), 0, 0, 0)


def give_up_privileges() -> None:
    """No program that this thread executes gains privileges from here on (NO_NEW_PRIVS)."""
    # SAFETY: no argument is a pointer.
    _call(_prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def seccomp(
    operation: int, flags: int, argument: ctypes.Structure | ctypes.Array[ctypes.c_uint16] | ctypes.c_uint32
) -> int:
    """seccomp(2). Raises NotImplementedError where the call's number is not known."""
    # SAFETY: the pointer is to the caller's object, which its parameter here keeps alive, and which has the
    # type that the operation reads or writes. A pointer inside it (of struct sock_fprog) is to bytes that
    # the object itself keeps.
    return _call(_syscall, _number("seccomp"), operation, flags, ctypes.addressof(argument), 0, 0, 0)


def signal_thread(process: int, tid: int, number: int) -> None:
    """tgkill(2), which unlike pthread_kill(3) may name a thread that has just ended (ProcessLookupError)."""
    # SAFETY: no argument is a pointer.
    _call(_syscall, _number("tgkill"), process, tid, number, 0, 0, 0)


def copy_descriptor(process: int, descriptor: int) -> int:
    """pidfd_getfd(2): a copy of another process's descriptor. process: a descriptor of it."""
    # SAFETY: no argument is a pointer.
    return _call(_syscall, _number("pidfd_getfd"), process, descriptor, 0, 0, 0, 0)


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd"))


def open_node(path: str | os.PathLike[str], flags: int) -> int:
    """Open a device of the host so that nobody can change its node by the descriptor, not even root.

    It is opened behind a mount of its own that is read-only, where devices can be written all the same. Who
    may make no mounts (EPERM) gets it as it is: it is passed to nobody then who is root.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        tree = _read_only_copy(place)
    except PermissionError:
        return os.open(path, flags | os.O_CLOEXEC)
    finally:
        os.close(place)
    try:
        return os.open(f"/proc/self/fd/{tree}", flags | os.O_CLOEXEC)
    finally:
        os.close(tree)


def _read_only_copy(place: int) -> int:
    """A detached copy of the mount of what is open there."""
    wanted = _MountAttributes(set=_MOUNT_ATTR_RDONLY, propagation=_MS_PRIVATE)
    empty = ctypes.create_string_buffer(1)
    # SAFETY: the string is of the length 0, and lives until the calls return, as the structure does.
    name = ctypes.addressof(empty)
    tree = _call(_syscall, _number("open_tree"), place, name, _OPEN_TREE_CLONE | _AT_EMPTY_PATH, 0, 0, 0)
    try:
        size, address = ctypes.sizeof(wanted), ctypes.addressof(wanted)
        _call(_syscall, _number("mount_setattr"), tree, name, _AT_EMPTY_PATH, address, size, 0)
    except BaseException:
        os.close(tree)
        raise
    return tree


def call(number: int, arguments: tuple[int, ...]) -> tuple[int, int]:
    """Make a system call with its six arguments, for a filter to answer. Does not raise.

    Returns its result, and errno where that is -1.
    """
    # SAFETY: the caller sees to it that no argument is an address at which there is something.
    result: int = _syscall(number, *arguments)
    return result, ctypes.get_errno() if result == -1 else 0


def limit_arenas() -> None:
    """Have malloc make no arenas for threads; without effect in a C library that has none."""
    if hasattr(_libc, "mallopt"):
        # SAFETY: no argument is a pointer.
        _libc.mallopt(_M_ARENA_MAX, 1)


def load_unwinder() -> None:
    """Load what glibc loads when a thread ends; a C library that has none does not load it either."""
    try:
        ctypes.CDLL("libgcc_s.so.1")
    except OSError:
        pass
