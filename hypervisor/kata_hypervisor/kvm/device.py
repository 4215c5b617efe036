"""Opening KVM's device, with a sentence for each way in which that fails."""

from __future__ import annotations

import errno
import fcntl
import os

from kata_hypervisor import libc
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.kvm import abi

DEVICE = "/dev/kvm"

HINTS = {
    errno.ENOENT: "load kvm_intel or kvm_amd, or enable virtualization",
    errno.EACCES: "run as root or as a member of group kvm",
    errno.EPERM: "run as root or as a member of group kvm",
}


def open_kvm(device: str = DEVICE) -> int:
    """Open the device and see that it speaks the API of this module; the caller closes it.

    Raises:
        HostUnfitError: there is none, or it is another.
    """
    try:
        descriptor = libc.open_node(device, os.O_RDWR)
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "kata-ctl check tells what this host can do")
        raise HostUnfitError(f"cannot open {device}: {error.strerror}: {hint}") from error
    try:
        version = fcntl.ioctl(descriptor, abi.KVM_GET_API_VERSION)
        if version != abi.KVM_API_VERSION:
            raise HostUnfitError(
                f"{device} speaks version {version} of the KVM API, not {abi.KVM_API_VERSION}"
            )
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise HostUnfitError(f"{device} is not a KVM device: {error.strerror}") from error
        raise
    return descriptor


def patient_ioctl(descriptor: int, request: int, argument: int = 0) -> int:
    """Make a request that a signal may interrupt, until it is answered."""
    while True:
        try:
            return fcntl.ioctl(descriptor, request, argument)
        except InterruptedError:
            continue
