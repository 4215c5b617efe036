"""What the sealed processes of the runtime hold open: each descriptor is of a kind that is on a list.

What a descriptor is, is what the kernel says of it in /proc/PID/fd; of a socket that is not enough, so its
copy is asked for its family, nor of a device, which is known by its number. A kind that is on no list ends
the pod before the guest runs: a directory, a device or a socket of another kind is a way out for whoever owns
the process.
"""

from __future__ import annotations

import os
import socket
import stat

from kata_runtime import device_names, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_SO_DOMAIN = 39
_FAMILIES = {
    int(socket.AF_UNIX): "unix",
    int(socket.AF_VSOCK): "vsock",
    int(socket.AF_NETLINK): "netlink",
    int(socket.AF_INET): "inet",
    int(socket.AF_INET6): "inet6",
}

OF_SHIM = {
    "unix socket": "the broker's channel, containerd's connections, the VMM's channels, streams of the guest",
    "vsock socket": "the guest's agent, and its streams",
    "inet socket": "port-forwarding, in the pod's network namespace",
    "inet6 socket": "the same",
    "pipe": "the event loop's, the guest's console, logs, and what a hook or an image's maker answers",
    "FIFO": "standard streams of containers",
    "eventpoll": "the event loop",
    "eventfd": "interrupts of the machine in this process, and the end of its threads",
    "pidfd": "the broker's end",
    "/dev/null": "the standard streams of the shim",
}
"""What a sealed shim may hold, with the reason."""

OF_SHIM_WITH_MACHINE = {
    "kvm-vm": "the machine",
    "kvm-vcpu": "its processors",
    "memory": "the guest's memory, shared with virtiofsd",
    "/dev/kvm": "the machine, as it was made",
    "/dev/vhost-vsock": "the guest's vsock device",
    "/dev/vhost-net": "the guest's network device",
    "/dev/net/tun": "the guest's network",
    "/dev/urandom": "the guest's random numbers",
    "file": "disks and images of the guest, a template's memory",
    "block device": "disks of the guest",
}
"""What a shim may hold as well that has the virtual machine in it."""

OF_BROKER = {
    "unix socket": "the shim's channel, the VMM's monitor, the process that runs hooks",
    "pipe": "exited children; what the pod's init waits for; logs of the shim and of containers",
    "pidfd": "the end of the shim",
    "FIFO": "containerd's log",
    "file to append to": "the rollback journal; logs of containers",
    "directory": "the sandbox's, its bundle's, and those below which something may be opened later",
    "namespace": "the host's for mounts, where sources are, and its own; the pod's for network and pids",
    "bpf-prog": "what the kernel asks about the devices of the pod's cgroup, of version 2",
    "seccomp notify": "filters of children that are asked about",
    "/dev/null": "its standard streams",
}
"""What a sealed broker may hold, with the reason."""


def kinds(pid: int) -> dict[int, str]:
    """What each descriptor of a process is. Raises OSError."""
    numbers = map(int, os.listdir(f"/proc/{pid}/fd"))
    return {number: kind for number in numbers if (kind := kind_of(pid, number))}


def kind_of(pid: int, number: int) -> str:
    """What a descriptor is; empty when it is closed by now. Raises OSError."""
    path = f"/proc/{pid}/fd/{number}"
    try:
        target = os.readlink(path)
    except FileNotFoundError:
        return ""
    if target.startswith("socket:"):
        return f"{_family(pid, number)} socket"
    for prefix, kind in (("pipe:", "pipe"), ("pidfd:", "pidfd"), ("/memfd:", "memory"), ("anon_inode:", "")):
        if target.startswith(prefix):
            return kind or target.removeprefix(prefix).strip("[]").partition(":")[0]
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ""
    if found.st_dev == os.stat("/proc/self/ns/mnt").st_dev:
        return "namespace"
    if stat.S_ISCHR(found.st_mode):
        return device_names.path_of_character(found.st_rdev) or target
    return _kind_of_file(pid, number, found.st_mode)


def _kind_of_file(pid: int, number: int, mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "FIFO"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISBLK(mode):
        return "block device"
    return "file to append to" if _flags(pid, number) & os.O_APPEND else "file"


def _flags(pid: int, number: int) -> int:
    """The flags with which it was opened (proc_pid_fdinfo(5))."""
    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))


def _family(pid: int, number: int) -> str:
    copy = os.dup(number) if pid == os.getpid() else syscalls.take_descriptor(pid, number)
    # Named wrongly on purpose: otherwise Python asks for each of the three, and only one is wanted.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, copy) as found:
        family = found.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
    return _FAMILIES.get(family, f"family {family}")


def find_unlisted(pid: int, listed: Collection[str]) -> str | None:
    """Say which descriptor of a process is of a kind that is on no list. Raises OSError."""
    for number, kind in sorted(kinds(pid).items()):
        if kind not in listed:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            return f"descriptor {number} is of a kind that is on no list: {kind} ({target})"
    return None
