"""The system calls that Python's standard library does not have: the runtime room's only use of ctypes.

Numbers from 424 on are the same on every architecture; libc wrappers are used where they are old enough. With
`use_errno` ctypes exchanges the thread's errno with a copy of its own right after each call, before anything
else of Python runs, so that `ctypes.get_errno` is about the last call on this thread.
Sources: mount(2), umount(2), unshare(2), setns(2), prctl(2), open_tree(2), mount_setattr(2), move_mount(2),
close_range(2), openat2(2), pidfd_getfd(2), renameat2(2), pivot_root(2), capset(2), landlock(7).
"""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.syscall.restype = ctypes.c_long

_OPEN_TREE, _MOVE_MOUNT, _CLOSE_RANGE, _OPENAT2, _PIDFD_GETFD, _MOUNT_SETATTR = 428, 429, 436, 437, 438, 442
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_PR_SET_DUMPABLE = 4
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
# Number of rights over files, by the version of Landlock that brought the last of them.
_LANDLOCK_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION, _MAX_CAPABILITY = 0x20080522, 63
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 0x1, 0x2, 0x4
_RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x8, 0x10
_UMOUNT_NOFOLLOW, _MNT_DETACH = 8, 2
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_SYNCHRONOUS, MS_MANDLOCK, MS_DIRSYNC = 0x10, 0x40, 0x80
MS_NOATIME, MS_NODIRATIME, MS_RELATIME, MS_STRICTATIME = 0x400, 0x800, 0x200000, 0x1000000
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 0x40000, 0x80000, 0x100000

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_ATIME = 0x70  # the field; 0 in it is relatime
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME = 0x10, 0x20, 0x80


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _call(number: int, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    # SAFETY: the strings are bytes with a zero at their end, which live until the call returns.
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode(),
            flags,
            os.fsencode(data) if data else None,
        )
    )


def unmount(target: str, *, lazy: bool = False) -> None:
    """umount2(2), without following a link at the target's end. lazy: detach now, unmount when unused."""
    # SAFETY: the string is bytes with a zero at its end, which live until the call returns.
    _check(_libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)))


class _HowToOpen(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(
    directory: int,
    path: str,
    flags: int = os.O_PATH | os.O_CLOEXEC,
    mode: int = 0,
    *,
    same_mount: bool = False,
) -> int:
    """Open what is at a path below a directory, without following any link.

    mode: of the file that is made, with O_CREAT. same_mount: fail with EXDEV where the path crosses a mount.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    resolve |= _RESOLVE_NO_XDEV if same_mount else 0
    return _openat2(directory, path, flags, resolve, mode if flags & os.O_CREAT else 0)


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open a path as if the directory were the root, for its links too; it crosses no mount."""
    return _openat2(root, path, flags, _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_IN_ROOT)


def _openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    # SAFETY: the string and the structure, whose size the kernel gets, live until the call returns.
    how = _HowToOpen(flags=flags, mode=mode, resolve=resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return _call(_OPENAT2, ctypes.c_int(directory), os.fsencode(path), ctypes.byref(how), size)


def clone_tree(fd: int, *, recursive: bool) -> int:
    """Return a descriptor of a detached copy of a mount: a bind mount that is nowhere yet."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    # SAFETY: the string is a constant with a zero at its end.
    return _call(_OPEN_TREE, ctypes.c_int(fd), b"", ctypes.c_uint(flags))


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_attributes(tree: int, attributes: int, *, recursive: bool, propagation: int = 0) -> None:
    """Set MOUNT_ATTR_* and the propagation of a mount, or of all below it too; 0 changes nothing."""
    clear = MOUNT_ATTR_ATIME if attributes & MOUNT_ATTR_ATIME else 0
    wanted = _MountAttributes(set=attributes, clear=clear, propagation=propagation)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    # SAFETY: the string is a constant; the structure, whose size the kernel gets, lives until the return.
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    _call(_MOUNT_SETATTR, ctypes.c_int(tree), b"", ctypes.c_uint(flags), ctypes.byref(wanted), size)


def attach_tree(tree: int, target: int) -> None:
    """Put a detached mount on what a descriptor names."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    # SAFETY: the strings are constants with a zero at their end.
    _call(_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", ctypes.c_uint(flags))


def unshare_mounts() -> None:
    """Enter a mount namespace of our own, which receives the host's mounts and gives it none.

    The whole tree becomes a slave of the host's, and then shared, so that a child's own namespace (virtiofsd
    makes one) receives what is mounted here later.
    """
    # SAFETY: no argument is a pointer.
    _check(_libc.unshare(_CLONE_NEWNS))
    mount("", "/", flags=MS_SLAVE | MS_REC)
    mount("", "/", flags=MS_SHARED | MS_REC)


def enter_mounts(namespace: int) -> None:
    """Enter a mount namespace by a descriptor of it; the root and the working directory become its root."""
    # SAFETY: no argument is a pointer.
    _check(_libc.setns(namespace, _CLONE_NEWNS))


def enter_network(namespace: int) -> None:
    """Move this thread into a network namespace, by a descriptor of it."""
    # SAFETY: no argument is a pointer.
    _check(_libc.setns(namespace, _CLONE_NEWNET))


def unshare_child(*, network: bool = True) -> None:
    """Enter mount, UTS, IPC and network namespaces of our own; mounts in there are nobody else's.

    network: false to stay in the network namespace that was entered before.
    """
    network_flag = _CLONE_NEWNET if network else 0
    # SAFETY: no argument is a pointer.
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | network_flag))
    mount("", "/", flags=MS_PRIVATE | MS_REC)


def pivot_root() -> None:
    """Make the working directory, which is a mount, the root; nothing of the old one is left."""
    # SAFETY: the strings are constants with a zero at their end.
    _check(_libc.pivot_root(b".", b"."))
    unmount(".", lazy=True)


def unshare_pids() -> None:
    """Let the next child be process 1 of a PID namespace."""
    # SAFETY: no argument is a pointer.
    _check(_libc.unshare(_CLONE_NEWPID))


def enter_pids(namespace: int) -> None:
    """Let the next children be in a PID namespace, by a descriptor of it."""
    # SAFETY: no argument is a pointer.
    _check(_libc.setns(namespace, _CLONE_NEWPID))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become_user(number: int) -> None:
    """Become a user and group of this number and no others, without any capability, for ever.

    The kernel forgets at this point who we die with: `die_with_parent` must be called again.
    """
    for capability in range(_MAX_CAPABILITY + 1):
        # SAFETY: no argument is a pointer.
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL and capability > 0:
                break  # the kernel has no more of them
            _check(-1)
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    header = _CapabilityHeader(version=_CAPABILITY_VERSION, pid=0)
    nothing = (_CapabilityData * 2)()
    # SAFETY: both structures live until the call returns; this version reads two of the second.
    _check(_libc.capset(ctypes.byref(header), nothing))
    # SAFETY: no argument is a pointer.
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def forbid_dumps() -> None:
    """Be in no core dump, and be traced and read in /proc by root only."""
    # SAFETY: no argument is a pointer.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


class _LandlockRuleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def landlock_version() -> int:
    """The version of Landlock that the kernel has; 0 without it."""
    try:
        # SAFETY: no argument is a pointer that is looked at.
        return _call(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def deny_files() -> bool:
    """Deny this thread, for ever, whatever Landlock can: files, TCP, abstract sockets; False without it.

    It needs no_new_privs. What is open stays usable.
    """
    version = landlock_version()
    if version == 0:
        return False
    rights = max(bits for since, bits in _LANDLOCK_FILE_RIGHTS.items() if since <= version)
    denied = _LandlockRuleset(
        files=(1 << rights) - 1,
        network=0b11 if version >= 4 else 0,  # bind, connect
        scoped=0b1 if version >= 6 else 0,  # abstract sockets of others
    )
    size = ctypes.c_size_t(8 if version < 4 else 16 if version < 6 else 24)
    # SAFETY: the structure, whose size the kernel gets, lives until the call returns.
    ruleset = _call(_LANDLOCK_CREATE_RULESET, ctypes.byref(denied), size, ctypes.c_uint(0))
    try:
        # SAFETY: no argument is a pointer.
        _call(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return True


def set_name(name: str) -> None:
    """Name this thread, as ps and /proc show it (15 characters)."""
    # SAFETY: the kernel reads 16 bytes at most, up to the zero that ends the buffer, which lives until then.
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0))


def become_subreaper() -> None:
    """Become the parent of descendants whose own parents exit."""
    # SAFETY: no argument is a pointer.
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent(number: int) -> None:
    """Have the kernel send this signal when the thread that forked us exits."""
    # SAFETY: no argument is a pointer.
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def close_range(first: int, last: int) -> None:
    """Close every descriptor from `first` to `last`, both included."""
    # SAFETY: no argument is a pointer.
    _call(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))


def take_descriptor(pid: int, fd: int) -> int:
    """Return a copy of a child's descriptor. Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        # SAFETY: no argument is a pointer.
        return _call(_PIDFD_GETFD, ctypes.c_int(process), ctypes.c_int(fd), ctypes.c_uint(0))
    finally:
        os.close(process)


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Let two paths of one file system change places in one step. Raises OSError."""
    # SAFETY: the strings are bytes with a zero at their end, which live until the call returns.
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE))
