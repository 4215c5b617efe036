"""The guest kernel's command line, for VMMs whose guest finds its image as the first virtio block device.

Later parameters win in the kernel, so the order is: the driver's, the image's, the machine's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kata_hypervisor.contract import VmSpec
from kata_hypervisor.errors import LaunchError

LIMIT = 2047
"""Bytes of an x86 kernel's command line (COMMAND_LINE_SIZE, minus the terminator); it cuts off the rest."""

# See qemu/command.py for the reasons; a reset is what a VMM takes as the guest's end.
COMMON = (
    "console=ttyS0",
    "reboot=k",
    "panic=-1",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
)


def kernel_line(parameters: Iterable[str], spec: VmSpec, *, quiet: bool) -> str:
    """Join the common parameters, the driver's and the machine's.

    Raises:
        LaunchError: it is longer than the kernel reads.
        OSError: the image cannot be read.
    """
    line = [*COMMON, *parameters, *(("quiet",) if quiet else ())]
    if spec.image is not None:
        device = "/dev/vda1" if has_partition_table(spec.image) else "/dev/vda"
        line += [f"root={device}", f"rootfstype={spec.rootfs_type}", "ro"]
    joined = " ".join([*line, *spec.kernel_parameters])
    if len(joined.encode()) > LIMIT:
        raise LaunchError(
            f"cannot boot the guest: its kernel command line has {len(joined.encode())} bytes, "
            f"the kernel reads {LIMIT}; shorten kernel_params"
        )
    return joined


def has_partition_table(image: Path) -> bool:
    """Tell whether a disk image begins with an MBR, which every GPT disk has too (as a protective one)."""
    with image.open("rb") as file:
        return file.read(512)[510:] == b"\x55\xaa"
