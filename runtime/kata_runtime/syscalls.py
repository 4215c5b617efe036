"""The system calls that Python's standard library does not have: the runtime room's only use of ctypes.

Numbers from 424 on are the same on every architecture; libc wrappers are used where they are old enough. With
`use_errno` ctypes exchanges the thread's errno with a copy of its own right after each call, before anything
else of Python runs, so that `ctypes.get_errno` is about the last call on this thread. A call goes on after a
signal that has interrupted it, as Python's own do (PEP 475).
Sources: mount(2), umount(2), unshare(2), setns(2), prctl(2), open_tree(2), mount_setattr(2), move_mount(2),
close_range(2), openat2(2), pidfd_getfd(2), renameat2(2), pivot_root(2), capset(2), landlock(7),
capabilities(7), bpf(2), ioprio_get(2).
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.syscall.restype = ctypes.c_long
_libc.sbrk.argtypes, _libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t

_LAST_FD = 0xFFFFFFFF
_OPEN_TREE, _MOVE_MOUNT, _CLOSE_RANGE, _OPENAT2, _PIDFD_GETFD, _MOUNT_SETATTR = 428, 429, 436, 437, 438, 442
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_PR_SET_DUMPABLE = 4
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
# Number of rights over files, by the version of Landlock that brought the last of them.
_LANDLOCK_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION, _MAX_CAPABILITY = 0x20080522, 63
_BPF = {"x86_64": 321, "aarch64": 280}
_IOPRIO = {"x86_64": (252, 251), "aarch64": (31, 30)}  # get, set
_BPF_PROG_LOAD, _SCHED_CLS, _BPF_INSTRUCTION = 5, 3, 8
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 0x1, 0x2, 0x4
_RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x8, 0x10
_UMOUNT_NOFOLLOW, _MNT_DETACH = 8, 2
_BPF_PROG_ATTACH, _CGROUP_DEVICE, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI = 8, 15, 6, 2
_BPF_F_REPLACE = 4
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_SYNCHRONOUS, MS_MANDLOCK, MS_DIRSYNC = 0x10, 0x40, 0x80
MS_NOATIME, MS_NODIRATIME, MS_RELATIME, MS_STRICTATIME = 0x400, 0x800, 0x200000, 0x1000000
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 0x40000, 0x80000, 0x100000

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_ATIME = 0x70  # the field; 0 in it is relatime
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME = 0x10, 0x20, 0x80


def _call(function: Any, *arguments: object) -> int:
    """Call a function of the library, until it has not been interrupted by a signal. Raises OSError."""
    while (result := int(function(*arguments))) < 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return result


def _system_call(number: int, *arguments: object) -> int:
    return _call(_libc.syscall, ctypes.c_long(number), *arguments)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    # SAFETY: the strings are bytes with a zero at their end, which live until the call returns.
    options = os.fsencode(data) if data else None
    _call(_libc.mount, os.fsencode(source), os.fsencode(target), kind.encode(), flags, options)


def unmount(target: str, *, lazy: bool = False) -> None:
    """umount2(2), without following a link at the target's end. lazy: detach now, unmount when unused."""
    # SAFETY: the string is bytes with a zero at its end, which live until the call returns.
    _call(_libc.umount2, os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))


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
    return _system_call(_OPENAT2, ctypes.c_int(directory), os.fsencode(path), ctypes.byref(how), size)


def clone_tree(fd: int, *, recursive: bool) -> int:
    """Return a descriptor of a detached copy of a mount: a bind mount that is nowhere yet."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    # SAFETY: the string is a constant with a zero at its end.
    return _system_call(_OPEN_TREE, ctypes.c_int(fd), b"", ctypes.c_uint(flags))


def open_read_only(file: int, access: int = os.O_RDONLY) -> int:
    """Open a file anew to read, behind a mount of its own that is read-only, and is nowhere.

    access: of a device, which can be written there all the same.

    Whoever has a descriptor, and may write to the file, can open it for writing by /proc/self/fd, or change
    its mode, however the descriptor was opened. The mount goes with this one, and denies it to root too.
    """
    tree = clone_tree(file, recursive=False)
    try:
        set_attributes(tree, MOUNT_ATTR_RDONLY, recursive=False, propagation=MS_PRIVATE)
        return os.open(f"/proc/self/fd/{tree}", access | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(tree)


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
    _system_call(_MOUNT_SETATTR, ctypes.c_int(tree), b"", ctypes.c_uint(flags), ctypes.byref(wanted), size)


def clear_attributes(mounted: int, attributes: int) -> None:
    """Clear MOUNT_ATTR_* of a mount of the process's mount namespace."""
    wanted = _MountAttributes(clear=attributes)
    # SAFETY: the string is a constant; the structure, whose size the kernel gets, lives until the return.
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    _system_call(
        _MOUNT_SETATTR, ctypes.c_int(mounted), b"", ctypes.c_uint(_AT_EMPTY_PATH), ctypes.byref(wanted), size
    )


def attach_tree(tree: int, target: int) -> None:
    """Put a detached mount on what a descriptor names."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    # SAFETY: the strings are constants with a zero at their end.
    _system_call(_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", ctypes.c_uint(flags))


def unshare_mounts() -> None:
    """Enter a mount namespace of our own, which receives the host's mounts and gives it none.

    The whole tree becomes a slave of the host's, and then shared, so that a child's own namespace (virtiofsd
    makes one) receives what is mounted here later.
    """
    # SAFETY: no argument is a pointer.
    _call(_libc.unshare, _CLONE_NEWNS)
    mount("", "/", flags=MS_SLAVE | MS_REC)
    mount("", "/", flags=MS_SHARED | MS_REC)


def enter_mounts(namespace: int) -> None:
    """Enter a mount namespace by a descriptor of it; the root and the working directory become its root."""
    # SAFETY: no argument is a pointer.
    _call(_libc.setns, namespace, _CLONE_NEWNS)


def enter_network(namespace: int) -> None:
    """Move this thread into a network namespace, by a descriptor of it."""
    # SAFETY: no argument is a pointer.
    _call(_libc.setns, namespace, _CLONE_NEWNET)


def unshare_network() -> None:
    """Enter a network namespace of our own, which is empty."""
    # SAFETY: no argument is a pointer.
    _call(_libc.unshare, _CLONE_NEWNET)


class _ProgramLoad(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_LOAD (linux/bpf.h)."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
    )


def load_traffic_program(code: bytes) -> int:
    """Return a descriptor of an eBPF program for traffic control, made of these instructions."""
    return _load_program(_SCHED_CLS, code)


def _load_program(kind: int, code: bytes) -> int:
    program, terms = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    wanted = _ProgramLoad(
        prog_type=kind,
        insn_cnt=len(code) // _BPF_INSTRUCTION,
        insns=ctypes.addressof(program),
        license=ctypes.addressof(terms),
    )
    # SAFETY: the structure, whose size the kernel gets, and both buffers live until the call returns.
    size = ctypes.c_uint(ctypes.sizeof(wanted))
    return _system_call(_BPF[os.uname().machine], ctypes.c_int(_BPF_PROG_LOAD), ctypes.byref(wanted), size)


def unshare_child(*, network: bool = True, receive: bool = False) -> None:
    """Enter mount, UTS, IPC and network namespaces of our own; mounts in there are nobody else's.

    network: false to stay in the network namespace that was entered before. receive: whether mounts that are
    made outside later are seen.
    """
    network_flag = _CLONE_NEWNET if network else 0
    # SAFETY: no argument is a pointer.
    _call(_libc.unshare, _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | network_flag)
    mount("", "/", flags=(MS_SLAVE if receive else MS_PRIVATE) | MS_REC)


def unshare_users() -> None:
    """Enter a user namespace of our own, which knows no user yet, with every capability in there."""
    # SAFETY: no argument is a pointer.
    _call(_libc.unshare, _CLONE_NEWUSER)


def pivot_root() -> None:
    """Make the working directory, which is a mount, the root; nothing of the old one is left."""
    # SAFETY: the strings are constants with a zero at their end.
    _call(_libc.pivot_root, b".", b".")
    unmount(".", lazy=True)


def replace_root(tree: int) -> None:
    """Make a detached mount the root of every process of the mount namespace that has its root."""
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        attach_tree(tree, root)
    finally:
        os.close(root)
    os.fchdir(tree)
    pivot_root()


def unshare_pids() -> None:
    """Let the next child be process 1 of a PID namespace."""
    # SAFETY: no argument is a pointer.
    _call(_libc.unshare, _CLONE_NEWPID)


def enter_pids(namespace: int) -> None:
    """Let the next children be in a PID namespace, by a descriptor of it."""
    # SAFETY: no argument is a pointer.
    _call(_libc.setns, namespace, _CLONE_NEWPID)


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
    _bound_capabilities(frozenset())
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    _keep_capabilities(0)


def become_server(capabilities: Collection[int]) -> None:
    """Keep these capabilities and no other, for ever, as the root of a user namespace, in no other group."""
    _bound_capabilities(capabilities)
    os.setgroups([])
    _keep_capabilities(sum(1 << number for number in capabilities))


def keep_capabilities(kept: int) -> None:
    """Give up every capability but these, a bit for each, and but those that this process has, for ever.

    None is inherited: a program that root executes has the kept ones, and any other has none.
    """
    _bound_capabilities([number for number in range(_MAX_CAPABILITY + 1) if kept & 1 << number])
    # SAFETY: no argument is a pointer.
    _call(_libc.prctl, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _keep_capabilities(kept & _permitted_capabilities())


def _permitted_capabilities() -> int:
    header = _CapabilityHeader(version=_CAPABILITY_VERSION, pid=0)
    found = (_CapabilityData * 2)()
    # SAFETY: both structures live until the call returns; this version writes two of the second.
    _call(_libc.capget, ctypes.byref(header), found)
    return int(found[0].permitted) | int(found[1].permitted) << 32


def _bound_capabilities(kept: Collection[int]) -> None:
    for capability in range(_MAX_CAPABILITY + 1):
        if capability in kept:
            continue
        try:
            # SAFETY: no argument is a pointer.
            _call(_libc.prctl, _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError as error:
            if error.errno == errno.EINVAL and capability > 0:
                break  # the kernel has no more of them
            raise


def _keep_capabilities(kept: int) -> None:
    """Keep a set of capabilities, of which a program that is executed gains no more. kept: a bit for each."""
    header = _CapabilityHeader(version=_CAPABILITY_VERSION, pid=0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    halves = (_CapabilityData * 2)(*(_CapabilityData(bits, bits, 0) for bits in (low, high)))
    # SAFETY: both structures live until the call returns; this version reads two of the second.
    _call(_libc.capset, ctypes.byref(header), halves)
    # SAFETY: no argument is a pointer.
    _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def gain_nothing(kept: Collection[int] = ()) -> None:
    """Let no program that this thread executes gain a capability, nor those of threads that it makes.

    kept: those that a program of root's may have all the same. What the thread holds already it keeps. Other
    threads are not changed: no call does that for a whole process.
    """
    _bound_capabilities(kept)
    # SAFETY: no argument is a pointer.
    _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forbid_dumps() -> None:
    """Be in no core dump, and be traced and read in /proc by root only."""
    # SAFETY: no argument is a pointer.
    _call(_libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)


class _LandlockRuleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def landlock_version() -> int:
    """The version of Landlock that the kernel has; 0 without it."""
    try:
        # SAFETY: no argument is a pointer that is looked at.
        return _system_call(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
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
    ruleset = _system_call(_LANDLOCK_CREATE_RULESET, ctypes.byref(denied), size, ctypes.c_uint(0))
    try:
        # SAFETY: no argument is a pointer.
        _system_call(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return True


class _ProgramToAttach(ctypes.Structure):
    _fields_ = (
        ("target", ctypes.c_uint32),
        ("program", ctypes.c_uint32),
        ("place", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("replaced", ctypes.c_uint32),
    )


def attach_device_program(group: int, instructions: bytes, replaced: int = -1) -> int:
    """Have a program asked about each device that the processes of a version 2 cgroup open or make.

    group: a descriptor of its directory. instructions: those of a BPF_PROG_TYPE_CGROUP_DEVICE; what other
    programs refuse, here or in a parent, stays refused. It goes with the cgroup. replaced: a descriptor of
    the one in whose place it comes, -1 for none. Returns a descriptor of it, the caller's.
    """
    program = _load_program(_CGROUP_DEVICE, instructions)
    try:
        flags = _BPF_F_ALLOW_MULTI if replaced < 0 else _BPF_F_ALLOW_MULTI | _BPF_F_REPLACE
        wanted = _ProgramToAttach(target=group, program=program, place=_BPF_CGROUP_DEVICE, flags=flags)
        wanted.replaced = max(replaced, 0)
        # SAFETY: the structure, whose size the kernel gets, lives until the call returns.
        size = ctypes.c_uint(ctypes.sizeof(wanted))
        _system_call(_BPF[os.uname().machine], ctypes.c_int(_BPF_PROG_ATTACH), ctypes.byref(wanted), size)
    except BaseException:
        os.close(program)
        raise
    return program


def set_name(name: str) -> None:
    """Name this thread, as ps and /proc show it (15 characters)."""
    # SAFETY: the kernel reads 16 bytes at most, up to the zero that ends the buffer, which lives until then.
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _call(_libc.prctl, _PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0)


class _MemoryMap(ctypes.Structure):
    """struct prctl_mm_map (linux/prctl.h)."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("start_code", "end_code", "start_data", "end_data")),
        *((name, ctypes.c_uint64) for name in ("start_brk", "brk", "start_stack")),
        *((name, ctypes.c_uint64) for name in ("arg_start", "arg_end", "env_start", "env_end", "auxv")),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


# Fields of /proc/PID/stat (proc_pid_stat(5)), counted from the third on.
_STAT = {
    "start_code": 23,
    "end_code": 24,
    "start_stack": 25,
    "start_data": 42,
    "end_data": 43,
    "start_brk": 44,
}
_shown: list[object] = []


def set_command_line(command: Sequence[bytes], environment: Sequence[bytes]) -> None:
    """Be shown in /proc with this command line and environment, as after an execve.

    Takes a kernel with CONFIG_CHECKPOINT_RESTORE. Raises OSError.
    """
    import mmap  # not for the broker, which never changes its own

    texts = [b"".join(word + b"\0" for word in words) for words in (command, environment)]
    page = mmap.mmap(-1, sum(map(len, texts)) + 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(b"".join(texts))
    view = (ctypes.c_char * len(page)).from_buffer(page)
    _shown[:] = [view]
    begin = ctypes.addressof(view)
    middle = begin + len(texts[0])
    with open("/proc/self/stat", "rb") as file:
        numbers = file.read().rpartition(b")")[2].split()
    wanted = _MemoryMap(
        **{name: int(numbers[index]) for name, index in _STAT.items()},
        brk=_libc.sbrk(0),
        arg_start=begin,
        arg_end=middle,
        env_start=middle,
        env_end=middle + len(texts[1]),
        exe_fd=0xFFFFFFFF,  # stays, as the auxiliary vector does
    )
    # SAFETY: the structure, whose size the kernel gets, lives until the return; what it names, in `_shown`.
    _call(_libc.prctl, _PR_SET_MM, _PR_SET_MM_MAP, ctypes.addressof(wanted), ctypes.sizeof(wanted), 0)


def io_priority(pid: int) -> int:
    """Class and level with which a process is served by disks (ioprio_get(2))."""
    # SAFETY: no argument is a pointer.
    return _system_call(_IOPRIO[os.uname().machine][0], ctypes.c_int(1), ctypes.c_int(pid))


def set_io_priority(priority: int) -> None:
    """Be served by disks like this; see `io_priority`."""
    # SAFETY: no argument is a pointer.
    number = _IOPRIO[os.uname().machine][1]
    _system_call(number, ctypes.c_int(1), ctypes.c_int(0), ctypes.c_int(priority))


def become_subreaper() -> None:
    """Become the parent of descendants whose own parents exit."""
    # SAFETY: no argument is a pointer.
    _call(_libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(number: int) -> None:
    """Have the kernel send this signal when the thread that forked us exits."""
    # SAFETY: no argument is a pointer.
    _call(_libc.prctl, _PR_SET_PDEATHSIG, number, 0, 0, 0)


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor but these: a fork holds nothing of its parent's that it has no use for."""
    first = 0
    for fd in sorted(kept):
        if first < fd:
            _close_range(first, fd - 1)
        first = fd + 1
    _close_range(first, _LAST_FD)


def _close_range(first: int, last: int) -> None:
    # SAFETY: no argument is a pointer.
    _system_call(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))


def take_descriptor(pid: int, fd: int) -> int:
    """Return a copy of a child's descriptor. Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        # SAFETY: no argument is a pointer.
        return _system_call(_PIDFD_GETFD, ctypes.c_int(process), ctypes.c_int(fd), ctypes.c_uint(0))
    finally:
        os.close(process)


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Let two paths of one file system change places in one step. Raises OSError."""
    # SAFETY: the strings are bytes with a zero at their end, which live until the call returns.
    _call(_libc.renameat2, _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
