"""The arguments by which calls are distinguished: which are kept, how wide they are, what they are called.

Sources: the manual page of each call; the kernel's include/uapi/linux and include/uapi/asm-generic headers.
"""

from __future__ import annotations

import mmap
import signal
import socket
import termios
from collections.abc import Iterator, Mapping

INT, LONG = 32, 64

# Each call's arguments that decide what it does: index and the bits that the kernel looks at.
KEPT: dict[str, tuple[tuple[int, int], ...]] = {
    "accept4": ((3, INT),),
    "arch_prctl": ((0, INT),),
    "bpf": ((0, INT),),
    "clock_gettime": ((0, INT),),
    "clock_nanosleep": ((0, INT), (1, INT)),
    "clone": ((0, LONG),),
    "epoll_create1": ((0, INT),),
    "epoll_ctl": ((1, INT),),
    "eventfd2": ((1, INT),),
    "fallocate": ((1, INT),),
    "fcntl": ((1, INT),),
    "flock": ((1, INT),),
    "futex": ((1, INT),),
    "getsockopt": ((1, INT), (2, INT)),
    "ioctl": ((1, INT),),
    "kill": ((1, INT),),
    "lseek": ((2, INT),),
    "madvise": ((2, INT),),
    "membarrier": ((0, INT),),
    "memfd_create": ((1, INT),),
    "mmap": ((2, LONG), (3, LONG)),
    "mprotect": ((2, LONG),),
    "mremap": ((3, LONG),),
    "open": ((1, INT),),
    "openat": ((2, INT),),
    "personality": ((0, INT),),
    "pipe2": ((1, INT),),
    "prctl": ((0, INT),),
    "prlimit64": ((1, INT),),
    "ptrace": ((0, LONG),),
    "recvfrom": ((3, INT),),
    "recvmsg": ((2, INT),),
    "rt_sigaction": ((0, INT),),
    "rt_sigprocmask": ((0, INT),),
    "seccomp": ((0, INT), (1, INT)),
    "sendmsg": ((2, INT),),
    "sendto": ((3, INT),),
    "setns": ((1, INT),),
    "setsockopt": ((1, INT), (2, INT)),
    "shutdown": ((1, INT),),
    "socket": ((0, INT), (1, INT), (2, INT)),
    "socketpair": ((0, INT), (1, INT), (2, INT)),
    "tgkill": ((2, INT),),
    "timerfd_create": ((0, INT), (1, INT)),
    "timerfd_settime": ((1, INT),),
    "tkill": ((1, INT),),
    "umount2": ((1, INT),),
    "unshare": ((0, INT),),
}


def keep(call: str, arguments: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The arguments of a call that are worth keeping, as pairs of index and value."""
    return tuple((index, arguments[index] & (1 << bits) - 1) for index, bits in KEPT.get(call, ()))


def width(call: str, index: int) -> int:
    """How many bits of an argument the kernel looks at: INT or LONG."""
    return next((bits for kept, bits in KEPT.get(call, ()) if kept == index), LONG)


def _constants(module: object, prefix: str) -> dict[int, str]:
    """The names of a module's constants, the first one of each value."""
    names: dict[int, str] = {}
    for name in sorted(vars(module)):
        value = getattr(module, name)
        if name.startswith(prefix) and isinstance(value, int):
            names.setdefault(int(value), name)
    return names


def _numbered(prefix: str, names: str) -> dict[int, str]:
    """Names for 0, 1, 2 ... in their order; "-" for a number without one."""
    return {number: prefix + name for number, name in enumerate(names.split()) if name != "-"}


def _bits(prefix: str, names: str) -> dict[int, str]:
    """Names for 1, 2, 4 ... in their order; "-" for a bit without one."""
    return {1 << number: prefix + name for number, name in enumerate(names.split()) if name != "-"}


_SIGNALS = {number.value: number.name for number in signal.Signals}
_FAMILIES = _constants(socket, "AF_")
_LEVELS = {1: "SOL_SOCKET", 6: "IPPROTO_TCP", 0: "IPPROTO_IP", 41: "IPPROTO_IPV6", 40: "AF_VSOCK"}
_CLOCKS = _numbered("CLOCK_", "REALTIME MONOTONIC PROCESS_CPUTIME_ID THREAD_CPUTIME_ID MONOTONIC_RAW")
_IOCTLS = {
    **_constants(termios, "TC"),
    **_constants(termios, "TIOC"),
    **_constants(termios, "FIO"),
    0xAE00: "KVM_GET_API_VERSION",
    0xAE01: "KVM_CREATE_VM",
    0xAE03: "KVM_CHECK_EXTENSION",
    0xAE04: "KVM_GET_VCPU_MMAP_SIZE",
    0xAE41: "KVM_CREATE_VCPU",
    0xAE60: "KVM_CREATE_IRQCHIP",
    0xAE80: "KVM_RUN",
    0x4004AE61: "KVM_IRQ_LINE",
    0x4020AE46: "KVM_SET_USER_MEMORY_REGION",
    0x4020AE76: "KVM_IRQFD",
    0x4040AE79: "KVM_IOEVENTFD",
    0x4090AE82: "KVM_SET_REGS",
    0x8090AE81: "KVM_GET_REGS",
    0x4138AE84: "KVM_SET_SREGS",
    0x8138AE83: "KVM_GET_SREGS",
    0x400454CA: "TUNSETIFF",
}
_FCNTL = {
    **_numbered("F_", "DUPFD GETFD SETFD GETFL SETFL GETLK SETLK SETLKW SETOWN GETOWN SETSIG GETSIG"),
    36: "F_OFD_GETLK",
    37: "F_OFD_SETLK",
    38: "F_OFD_SETLKW",
    1024: "F_SETLEASE",
    1030: "F_DUPFD_CLOEXEC",
    1031: "F_SETPIPE_SZ",
    1032: "F_GETPIPE_SZ",
    1033: "F_ADD_SEALS",
    1034: "F_GET_SEALS",
}
_FUTEX = _numbered(
    "FUTEX_",
    "WAIT WAKE FD REQUEUE CMP_REQUEUE WAKE_OP LOCK_PI UNLOCK_PI TRYLOCK_PI WAIT_BITSET WAKE_BITSET "
    "WAIT_REQUEUE_PI CMP_REQUEUE_PI LOCK_PI2",
)
_PRCTL = {
    1: "PR_SET_PDEATHSIG",
    3: "PR_GET_DUMPABLE",
    4: "PR_SET_DUMPABLE",
    15: "PR_SET_NAME",
    16: "PR_GET_NAME",
    21: "PR_GET_SECCOMP",
    22: "PR_SET_SECCOMP",
    23: "PR_CAPBSET_READ",
    29: "PR_SET_TIMERSLACK",
    33: "PR_MCE_KILL",
    36: "PR_SET_CHILD_SUBREAPER",
    38: "PR_SET_NO_NEW_PRIVS",
    0x53564D41: "PR_SET_VMA",
}
_MADVICE = {
    **_numbered("MADV_", "NORMAL RANDOM SEQUENTIAL WILLNEED DONTNEED - - - FREE REMOVE DONTFORK DOFORK"),
    **{number: f"MADV_{name}" for number, name in ((12, "MERGEABLE"), (13, "UNMERGEABLE"), (14, "HUGEPAGE"))},
    **{number: f"MADV_{name}" for number, name in ((15, "NOHUGEPAGE"), (16, "DONTDUMP"), (17, "DODUMP"))},
    102: "MADV_GUARD_INSTALL",
    103: "MADV_GUARD_REMOVE",
}
_RLIMITS = _numbered(
    "RLIMIT_",
    "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME",
)
_CLONE = _bits(
    "CLONE_",
    "- - - - - - - - VM FS FILES SIGHAND PIDFD PTRACE VFORK PARENT THREAD NEWNS SYSVSEM SETTLS PARENT_SETTID "
    "CHILD_CLEARTID DETACHED UNTRACED CHILD_SETTID NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET IO",
)
_PROTECTION = _bits("PROT_", "READ WRITE EXEC")
_MAPPING = {1: "MAP_SHARED", 2: "MAP_PRIVATE", 0x4000: "MAP_NORESERVE", 0x8000: "MAP_POPULATE"}
_MAPPING |= {0x10: "MAP_FIXED", mmap.MAP_ANONYMOUS: "MAP_ANONYMOUS", 0x800: "MAP_DENYWRITE"}
_MAPPING |= {0x20000: "MAP_STACK", 0x40000: "MAP_HUGETLB", 0x100000: "MAP_FIXED_NOREPLACE"}
_OPEN = {1: "O_WRONLY", 2: "O_RDWR", 0o100: "O_CREAT", 0o200: "O_EXCL", 0o400: "O_NOCTTY", 0o1000: "O_TRUNC"}
_OPEN |= {0o2000: "O_APPEND", 0o4000: "O_NONBLOCK", 0o40000: "O_DIRECT", 0o100000: "O_LARGEFILE"}
_OPEN |= {0o200000: "O_DIRECTORY", 0o400000: "O_NOFOLLOW", 0o2000000: "O_CLOEXEC", 0o10000000: "O_PATH"}
_SOCKET_TYPE = {1: "SOCK_STREAM", 2: "SOCK_DGRAM", 3: "SOCK_RAW", 5: "SOCK_SEQPACKET"}
_MESSAGE = {2: "MSG_PEEK", 0x40: "MSG_DONTWAIT", 0x4000: "MSG_NOSIGNAL", 0x40000000: "MSG_CMSG_CLOEXEC"}

_VALUES: dict[tuple[str, int], Mapping[int, str]] = {
    ("arch_prctl", 0): {0x1001: "ARCH_SET_GS", 0x1002: "ARCH_SET_FS", 0x3001: "ARCH_CET_STATUS"},
    ("clock_gettime", 0): _CLOCKS,
    ("clock_nanosleep", 0): _CLOCKS,
    ("epoll_ctl", 1): _numbered("EPOLL_CTL_", "- ADD DEL MOD"),
    ("fcntl", 1): _FCNTL,
    ("getsockopt", 1): _LEVELS,
    ("getsockopt", 2): _constants(socket, "SO_"),
    ("ioctl", 1): _IOCTLS,
    ("kill", 1): _SIGNALS,
    ("lseek", 2): _numbered("SEEK_", "SET CUR END DATA HOLE"),
    ("madvise", 2): _MADVICE,
    ("prctl", 0): _PRCTL,
    ("prlimit64", 1): _RLIMITS,
    ("rt_sigaction", 0): _SIGNALS,
    ("rt_sigprocmask", 0): _numbered("SIG_", "BLOCK UNBLOCK SETMASK"),
    ("seccomp", 0): _numbered("SECCOMP_", "SET_MODE_STRICT SET_MODE_FILTER GET_ACTION_AVAIL GET_NOTIF_SIZES"),
    ("setsockopt", 1): _LEVELS,
    ("setsockopt", 2): _constants(socket, "SO_"),
    ("shutdown", 1): _numbered("SHUT_", "RD WR RDWR"),
    ("socket", 0): _FAMILIES,
    ("socketpair", 0): _FAMILIES,
    ("tgkill", 2): _SIGNALS,
    ("timerfd_create", 0): _CLOCKS,
    ("tkill", 1): _SIGNALS,
}
_FLAGS: dict[tuple[str, int], Mapping[int, str]] = {
    ("mmap", 2): _PROTECTION,
    ("mmap", 3): _MAPPING,
    ("mprotect", 2): _PROTECTION,
    ("open", 1): _OPEN,
    ("openat", 2): _OPEN,
    ("clone", 0): _CLONE,
    ("unshare", 0): _CLONE,
    ("setns", 1): _CLONE,
    ("recvmsg", 2): _MESSAGE,
    ("sendmsg", 2): _MESSAGE,
    ("recvfrom", 3): _MESSAGE,
    ("sendto", 3): _MESSAGE,
    ("memfd_create", 1): _bits("MFD_", "CLOEXEC ALLOW_SEALING HUGETLB NOEXEC_SEAL EXEC"),
    ("seccomp", 1): _bits("", "TSYNC LOG SPEC_ALLOW NEW_LISTENER TSYNC_ESRCH WAIT_KILLABLE_RECV"),
    ("eventfd2", 1): {1: "EFD_SEMAPHORE", 0o4000: "EFD_NONBLOCK", 0o2000000: "EFD_CLOEXEC"},
    ("accept4", 3): {0o4000: "SOCK_NONBLOCK", 0o2000000: "SOCK_CLOEXEC"},
    ("pipe2", 1): {0o4000: "O_NONBLOCK", 0o40000: "O_DIRECT", 0o2000000: "O_CLOEXEC"},
    ("epoll_create1", 0): {0o2000000: "EPOLL_CLOEXEC"},
}
_NO_FLAG = {("open", 1): "O_RDONLY", ("openat", 2): "O_RDONLY"}
_NO_FLAG |= {("mmap", 2): "PROT_NONE", ("mprotect", 2): "PROT_NONE"}


def spell(call: str, index: int, value: int) -> str:
    """The value of an argument as its manual page names it; a number where it has no name here."""
    name = _VALUES.get((call, index), {}).get(value)
    if name is not None:
        return name
    if (call, index) in _FLAGS:
        return "|".join(_flags(value, _FLAGS[call, index])) or _NO_FLAG.get((call, index), "0")
    if call in ("socket", "socketpair") and index == 1:
        flags = _flags(value & ~0xF, {0o4000: "SOCK_NONBLOCK", 0o2000000: "SOCK_CLOEXEC"})
        return "|".join([_SOCKET_TYPE.get(value & 0xF, str(value & 0xF)), *flags])
    if call == "futex":
        flags = _flags(value & ~0x7F, {128: "PRIVATE", 256: "CLOCK_REALTIME"})
        return "|".join([_FUTEX.get(value & 0x7F, str(value & 0x7F)), *flags])
    return str(value) if value < 10 else f"{value:#x}"


def _flags(value: int, names: Mapping[int, str]) -> Iterator[str]:
    for bit, name in names.items():
        if value & bit == bit:
            yield name
            value &= ~bit
    if value:
        yield f"{value:#x}"
