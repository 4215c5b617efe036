"""Network devices for unikernels: on a tap of the host, or on what looks like one to who does not ask."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_hypervisor.contract import NetTap

TUN = Path("/dev/net/tun")
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
MAC = bytes.fromhex("020000000001")


@contextmanager
def network_device(way: str, *, real: bool) -> Iterator[NetTap]:
    """A device for the time of a `with`. way: "tap_descriptors" or "tap_names". real: on a tap."""
    name = f"kt{secrets.token_hex(4)}"
    if not real:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        with ours, theirs:
            yield NetTap(theirs.fileno() if way == "tap_descriptors" else -1, MAC, name=name)
        return
    if os.geteuid() != 0 or not TUN.exists():
        pytest.skip(f"needs root and {TUN}")
    tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        if way == "tap_descriptors":
            yield NetTap(tap, MAC)
            return
        fcntl.ioctl(tap, TUNSETPERSIST, 1)
    finally:
        os.close(tap)
    try:
        yield NetTap(-1, MAC, name=name)
    finally:
        tap = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(tap, TUNSETPERSIST, 0)
        os.close(tap)
