"""The guest kernel's command line; its image is the first virtio block device.

Later parameters win in the kernel, so the order is: the driver's, the image's, the machine's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kata_hypervisor import verity
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.errors import LaunchError

LIMIT = 2047
"""Bytes of an x86 kernel's command line (COMMAND_LINE_SIZE, minus the terminator); it cuts off the rest."""

# panic=-1 resets at once, which a VMM takes as the guest's end. cryptomgr.notests skips work that is slow
# when emulated. rcu_expedited: a container's set-up waits for a dozen grace periods (mounts, cgroups), a
# tenth of a second; a guest of few CPUs loses nothing by shorter ones.
COMMON = (
    "console=ttyS0",
    "reboot=k",
    "panic=-1",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
)


# Memory that comes later is used at once, and as much of it as the kernel can do without is kept free of what
# cannot be moved, so that it can go again.
LATER_MEMORY = ("memhp_default_state=online", "memory_hotplug.online_policy=auto-movable")


def kernel_line(parameters: Iterable[str], spec: VmSpec, *, quiet: bool, partitioned: bool) -> str:
    """Join the common parameters, the driver's and the machine's.

    quiet: whether the kernel keeps its messages to itself. partitioned: see `is_partitioned`.

    Raises:
        LaunchError: it is longer than the kernel reads.
    """
    line = [*COMMON, *parameters, *(("quiet",) if quiet else ())]
    line += LATER_MEMORY if spec.later_memory_mib else ()
    if spec.image is not None:
        device = "/dev/vda1" if partitioned else "/dev/vda"
        if spec.verity is not None:
            line.append(spec.verity.parameter(device, "/dev/vda2" if partitioned else None))
            device = verity.DEVICE
        line += [f"root={device}", f"rootfstype={spec.rootfs_type}", "ro"]
    joined = " ".join([*line, *spec.kernel_parameters])
    check_length(joined.encode())
    return joined


def check_length(line: bytes) -> None:
    """Raise LaunchError when the kernel would cut a command line off."""
    if len(line) > LIMIT:
        raise LaunchError(
            f"cannot boot the guest: its kernel command line has {len(line)} bytes, "
            f"the kernel reads {LIMIT}; shorten kernel_params"
        )


def is_partitioned(image: Path | None) -> bool:
    """Whether an image begins with a partition table, the root file system being the first partition.

    An MBR is looked for, which every GPT disk has too, as a protective one. Raises OSError.
    """
    if image is None:
        return False
    with image.open("rb") as file:
        return file.read(512)[510:] == b"\x55\xaa"
