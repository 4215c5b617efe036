"""Network namespaces as descriptors: telling them apart, and entering one.

A namespace is what its device and inode say, whatever path leads to it.
"""

from __future__ import annotations

import os

from kata_runtime.network.errors import NetworkError

_HOSTS = ("/proc/self/ns/net", "/proc/1/ns/net")
"""The host's: that of this process, and that of the first, which a container may not read."""

TAP = "tap{}_kata"
"""The name of the device for the VMM that is made for an interface, by the interface's number."""

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703

FALLBACK_DEVICES = frozenset(
    {
        *("sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip_vti0", "ip6_vti0"),
        *("teql0", "ifb0", "ifb1"),
    }
)
"""Names that the kernel's modules give to devices which they make in every namespace."""


def identity(namespace: int | str) -> tuple[int, int]:
    """Device and inode of a namespace, by a descriptor or a path. Raises OSError."""
    facts = os.stat(namespace)
    return facts.st_dev, facts.st_ino


def open_pods(path: str) -> int:
    """Open the network namespace of a pod.

    Raises:
        NetworkError: it is gone, it is no network namespace, or it is the host's.
    """
    try:
        # A FIFO in its place would hold up the broker.
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NetworkError(f"cannot open the pod's network namespace {path}: {error.strerror}") from None
    try:
        check_pods(namespace, path)
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def make() -> int:
    """Make an empty network namespace; return its descriptor. For a process of one thread. Raises OSError."""
    from kata_runtime import syscalls  # with ctypes

    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare_network()
        try:
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            syscalls.enter_network(own)
    finally:
        os.close(own)


def is_host(namespace: int | str) -> bool:
    """Whether a network namespace is the host's, by a descriptor or a path. Raises OSError."""
    own = identity(namespace)
    for path in _HOSTS:
        try:
            if identity(path) == own:
                return True
        except PermissionError:
            continue
    return False


def check_pods(namespace: int, path: str) -> None:
    """Raise NetworkError unless a descriptor is a network namespace that a pod can have. path: for the
    message.
    """
    import fcntl

    try:
        kind = fcntl.ioctl(namespace, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        raise NetworkError(f"{path} is no network namespace")
    if is_host(namespace):
        raise NetworkError(host_network(f"its network namespace {path} is the host's"))


def host_network(why: str) -> str:
    """The sentence for a pod that asks for the host's network. why: how that is known."""
    return (
        f"a pod in a virtual machine cannot use the host's network ({why}): "
        "remove hostNetwork from the pod, or run it with a runtime class without virtual machines"
    )


def enter(namespace: int) -> None:
    """Move this thread into a network namespace. Raises NetworkError."""
    from kata_runtime import syscalls  # with ctypes, which only the program that enters pays for

    try:
        syscalls.enter_network(namespace)
    except OSError as error:
        raise NetworkError(f"cannot enter the pod's network namespace: {error.strerror}") from error
