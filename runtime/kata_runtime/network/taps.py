"""Opening taps: their queues as descriptors, ready for a VMM that may set nothing any more.

Source: Documentation/networking/tuntap.rst, linux/if_tun.h. A macvtap's queues take the same ioctls.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress

from kata_runtime.network.errors import TAKEN, NetworkError, TakenError

TUN = "/dev/net/tun"
VNET_HEADER = 12
"""Bytes of a virtio_net_hdr with num_buffers, as version 1 of virtio has it."""

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x100, 0x1000, 0x4000, 0x8000
_OFFLOADS = 0x01 | 0x02 | 0x04  # TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6
_IFREQ = struct.Struct("16sH22x")
_SIOCGIFHWADDR = 0x8927  # linux/sockios.h
_MAC = slice(18, 24)
"""Where the address is in a struct ifreq, in its sockaddr."""
_NO_IPV6 = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"


def open_tap(name: str, queues: int, *, header: bool, new: bool) -> list[int]:
    """Open a tap's queues in this thread's network namespace; they do not block.

    header: frames have a virtio_net_hdr before them, and the guest may leave checksums and segmentation to
    the host. new: make the tap, which ends with its last descriptor.

    Raises:
        TakenError: it is to be new, and is there. NetworkError: there is no /dev/net/tun, or the kernel
            refuses the tap.
    """
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if header else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    try:
        for number in range(queues):
            fds.append(_open(TUN))
            wanted = flags | (_IFF_TUN_EXCL if new and not number else 0)
            fcntl.ioctl(fds[-1], _TUNSETIFF, _IFREQ.pack(name.encode(), wanted))
            _set_up(fds[-1], header=header)
    except OSError as error:
        close_all(fds)
        kind = TakenError if new and error.errno == errno.EBUSY else NetworkError
        raise kind(f"cannot open the tap {name}: {_reason(error)}") from None
    return fds


def open_macvtap(name: str, index: int, mac: str, queues: int, *, header: bool) -> list[int]:
    """Open the queues of a macvtap by its index, under which devtmpfs has its device.

    An index is of one namespace, and the device's name of the whole host: it may be another pod's macvtap,
    of the same index. mac: the address that this one has.

    Raises:
        NetworkError: the device is not there, or not this one's, or the kernel refuses.
    """
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if header else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(_open(f"/dev/tap{index}"))
            found = fcntl.ioctl(fds[-1], _SIOCGIFHWADDR, _IFREQ.pack(b"", 0))[_MAC]
            if found != bytes.fromhex(mac.replace(":", "")):
                raise OSError(errno.ENODEV, "it is another's, in another namespace")
            fcntl.ioctl(fds[-1], _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
            _set_up(fds[-1], header=header)
    except OSError as error:
        close_all(fds)
        raise NetworkError(f"cannot open /dev/tap{index} of the macvtap {name}: {error.strerror}") from None
    return fds


def give_to(fd: int, owner: int) -> None:
    """Let a tap outlive its descriptors, for a VMM that opens it by its name.

    owner: the only user that may open it without CAP_NET_ADMIN. Raises OSError.
    """
    fcntl.ioctl(fd, _TUNSETOWNER, owner)
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)


def keep_silent(name: str) -> None:
    """Let the namespace's own stack send the guest nothing: no router solicitation, no multicast report."""
    with suppress(FileNotFoundError), open(_NO_IPV6.format(name), "w", encoding="ascii") as file:
        file.write("1")  # else the host has no IPv6


def close_all(fds: list[int]) -> None:
    """Close the descriptors, and forget them."""
    while fds:
        os.close(fds.pop())


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _set_up(fd: int, *, header: bool) -> None:
    if header:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)


def _reason(error: OSError) -> str:
    if error.filename == TUN:
        return f"{TUN}: {error.strerror}; load the module tun, and allow the device in the pod's cgroup"
    if error.errno == errno.EBUSY:
        return TAKEN
    return error.strerror or str(error)
