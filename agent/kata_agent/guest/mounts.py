"""Mounts: what the guest needs at boot, and the few operations that storages and bundles are made of."""

from __future__ import annotations

import os
from typing import NamedTuple

from kata_agent.guest import syscalls
from kata_agent.guest.errors import InvalidRequestError
from kata_agent.guest.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID

_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": 16,
    "remount": syscalls.MS_REMOUNT,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "bind": syscalls.MS_BIND,
    "rbind": syscalls.MS_BIND | syscalls.MS_REC,
    "silent": 1 << 15,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
_NO_FLAG = {"rw", "suid", "dev", "exec", "async", "defaults", "atime", "loud"}


class BootMount(NamedTuple):
    """A mount that the guest cannot do without."""

    fstype: str
    target: str
    flags: int = 0
    data: str = ""


BOOT_MOUNTS = (
    BootMount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    BootMount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    BootMount("devtmpfs", "/dev", MS_NOSUID, "mode=755"),
    BootMount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=620,gid=5,ptmxmode=666"),
    BootMount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"),
    BootMount("mqueue", "/dev/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    BootMount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755"),
    BootMount("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"),
    BootMount("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate"),
)


def mount_missing() -> None:
    """Mount what the initramfs or an earlier boot stage has not mounted yet."""
    if not os.path.exists("/proc/self"):
        _mount(BOOT_MOUNTS[0])
    mounted = mount_points()
    for wanted in BOOT_MOUNTS:
        if wanted.target in mounted:
            continue
        if not os.path.isdir(wanted.target):  # only below /dev: the root itself is read-only and complete
            os.mkdir(wanted.target)
        _mount(wanted)


def _mount(wanted: BootMount) -> None:
    syscalls.mount(wanted.fstype, wanted.target, wanted.fstype, wanted.flags, wanted.data)


def mount_points() -> set[str]:
    """All mount points of this mount namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def parse_mountinfo(text: str) -> set[str]:
    """The mount points in the text of a mountinfo file (proc(5)); octal escapes are undone."""
    return {_unescape(line.split(" ")[4]) for line in text.splitlines() if line.count(" ") > 4}


def _unescape(text: str) -> str:
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def parse_options(options: list[str]) -> tuple[int, str]:
    """Split mount options into flags and the data string that the file system gets."""
    flags = 0
    data: list[str] = []
    for option in (part for joined in options for part in joined.split(",")):
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option and option not in _NO_FLAG:
            data.append(option)
    return flags, ",".join(data)


def bind(source: str, target: str, flags: int = syscalls.MS_REC) -> None:
    """Show source, with what is mounted below it, at target too."""
    syscalls.mount(source, target, "", syscalls.MS_BIND | flags)


def detach(target: str) -> None:
    """Take the mounts away from target, topmost first; none there is not an error."""
    while target in mount_points():
        syscalls.umount(target, syscalls.MNT_DETACH)


def check_target(path: str, what: str) -> str:
    """The path of a mount point that the host chose: absolute, below /run, and without ways out.

    Raises:
        InvalidRequestError: it is not.
    """
    clean = path.rstrip("/")
    if not clean.startswith("/run/") or os.path.normpath(clean) != clean or "\0" in clean:
        raise InvalidRequestError(f"{what} {path!r} is not a plain path below /run")
    if os.path.realpath(clean) != clean:
        raise InvalidRequestError(f"{what} {path!r} leads through a symbolic link")
    return clean
