"""How much of the kernel a filter leaves in reach, as one number; and what others leave, as published.

A system call that is let through weighs 1, or more by its class: "reach" (opens, maps, changes or signals
things beyond the process) 8, "heavy" (large or often exploited kernel code, identities) 12, "escape"
(replaces the program, or reaches other processes, mounts, namespaces and the kernel itself) 20. Where its
arguments are held to a condition it counts a quarter, or 15 % for the few calls whose arguments decide
everything. Lower is better. The weights are a judgement, not a standard; the order of the groups of VMMs
below stays the same with others.
"""

from __future__ import annotations

from dataclasses import dataclass

from kata_hypervisor.seccomp.survey import Survey


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ESCAPE = _names(
    """
    execve execveat ptrace process_vm_readv process_vm_writev pidfd_getfd bpf
    init_module finit_module delete_module kexec_load kexec_file_load
    mount umount2 move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr
    setns unshare chroot pivot_root keyctl open_by_handle_at
    """
)
HEAVY = _names(
    """
    io_uring_setup io_uring_enter io_uring_register userfaultfd perf_event_open clone3 fork vfork
    setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
    mknod mknodat personality reboot swapon swapoff iopl ioperm modify_ldt acct quotactl quotactl_fd
    add_key request_key
    """
)
REACH = _names(
    """
    open openat openat2 creat socket bind connect listen ioctl prctl mmap mprotect pkey_mprotect
    clone kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal
    memfd_create memfd_secret chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
    rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat mkdir mkdirat rmdir
    truncate ftruncate setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr
    removexattrat name_to_handle_at fanotify_init fanotify_mark shmat
    """
)
_DECIDED_BY_ARGUMENTS = _names("clone socket mmap mprotect prctl ioctl open openat openat2")

NORMAL_WEIGHT, REACH_WEIGHT, HEAVY_WEIGHT, ESCAPE_WEIGHT = 1, 8, 12, 20


def weight(name: str, *, conditional: bool = False) -> float:
    """What one allowed call adds to the score."""
    if name in ESCAPE:
        full = ESCAPE_WEIGHT
    elif name in HEAVY:
        full = HEAVY_WEIGHT
    else:
        full = REACH_WEIGHT if name in REACH else NORMAL_WEIGHT
    if not conditional:
        return full
    return full * (0.15 if name in _DECIDED_BY_ARGUMENTS else 0.25)


@dataclass(frozen=True, slots=True)
class Surface:
    """What is in reach: how many calls, how many of them whatever their arguments, and the score.

    escape: the calls of that class among them, also where a condition holds them. gaps: what no list of names
    shows: calls that have no name yet, and other calling conventions, where they are not refused.
    """

    allowed: int
    unfiltered: int
    escape: tuple[str, ...]
    score: float
    gaps: tuple[str, ...] = ()


def surface_of(survey: Survey) -> Surface:
    """Measure a survey."""
    unfiltered, conditional = survey.named("open"), survey.named("conditional")
    score = sum(map(weight, unfiltered)) + sum(weight(name, conditional=True) for name in conditional)
    return Surface(
        allowed=len(unfiltered) + len(conditional),
        unfiltered=len(unfiltered),
        escape=tuple(name for name in survey.allowed if name in ESCAPE),
        score=round(score, 2),
        gaps=survey.gaps,
    )


@dataclass(frozen=True, slots=True)
class Published:
    """What another VMM allows, by its own published lists, x86_64, August 2026.

    unit: what the filter is on. allowed, unfiltered: calls. escape: calls of that class. None: not published.
    """

    name: str
    unit: str
    allowed: int
    unfiltered: int | None
    escape: int | None
    score: float


PUBLISHED = (
    Published("solo5-spt", "process", 9, 1, 0, 3),
    Published("Firecracker, API thread", "thread", 31, 22, 0, 36),
    Published("solo5-hvt", "process", 18, 18, 0, 39),
    Published("Firecracker, vCPU thread", "thread", 27, 20, 0, 43),
    Published("Cloud Hypervisor, net thread", "thread", 31, None, None, 59),
    Published("Cloud Hypervisor, vsock thread", "thread", 35, None, None, 71),
    Published("gVisor sentry, KVM", "process", 79, 50, None, 80),
    Published("gVisor sentry, systrap", "process", 80, 48, None, 84),
    Published("Cloud Hypervisor, vCPU thread", "thread", 49, 45, 0, 91),
    Published("Firecracker", "process", 50, 37, 0, 95),
    Published("gVisor sentry, systrap and directfs", "process", 96, 48, None, 107),
    Published("urunc's list for solo5-hvt", "process", 43, 43, 1, 136),
    Published("crosvm, net device", "process", 67, 60, None, 144),
    Published("crosvm, block device", "process", 80, 73, None, 157),
    Published("Cloud Hypervisor", "process", 109, 106, None, 303),
    Published("crosvm, fs device", "process", 111, 104, None, 370),
    Published("Dragonball in Kata", "process", 168, 168, 7, 663),
    Published("QEMU, all four groups denied", "process", 323, 321, None, 1274),
    Published("QEMU, -sandbox on", "process", 343, None, None, 1511),
    Published("no filter", "process", 362, 362, None, 1601),
)
