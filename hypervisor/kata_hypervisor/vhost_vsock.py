"""The kernel's vsock device for guests: an open /dev/vhost-vsock with a context id that nobody else has.

Source: linux/vhost.h, VHOST_VSOCK_SET_GUEST_CID = _IOW(0xAF, 0x60, __u64); vsock(7): ids below 3 and
VMADDR_CID_ANY (2**32 - 1) name no guest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
from pathlib import Path

from kata_hypervisor import libc
from kata_hypervisor.errors import HostUnfitError

DEVICE = Path("/dev/vhost-vsock")
VHOST_VSOCK_SET_GUEST_CID = 0x4008AF60
FIRST_CID = 3
LAST_CID = 2**32 - 2
ATTEMPTS = 50


def open_device(device: Path = DEVICE) -> tuple[int, int] | None:
    """Open the device and reserve a context id for as long as the descriptor is open anywhere.

    Returns the descriptor and the id, or None where the host has no such device.

    Raises:
        HostUnfitError: the device is there but cannot be used.
    """
    try:
        descriptor = libc.open_node(device, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostUnfitError(
            f"cannot open {device} for the guest's vsock: {error.strerror}; allow the device in the pod's "
            "cgroup"
        ) from error
    try:
        return descriptor, _reserve_cid(descriptor, device)
    except BaseException:
        os.close(descriptor)
        raise


def _reserve_cid(descriptor: int, device: Path) -> int:
    for _ in range(ATTEMPTS):
        cid = FIRST_CID + secrets.randbelow(LAST_CID - FIRST_CID + 1)
        try:
            fcntl.ioctl(descriptor, VHOST_VSOCK_SET_GUEST_CID, struct.pack("=Q", cid))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise HostUnfitError(f"cannot reserve a vsock id on {device}: {error.strerror}") from error
        else:
            return cid
    raise HostUnfitError(f"cannot reserve a vsock id on {device}: {ATTEMPTS} random ids were all in use")
