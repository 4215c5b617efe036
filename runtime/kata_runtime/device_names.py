"""How the kernel names a device, whatever path it was opened by. Standard library only: the broker uses this.

Sources: the kernel's Documentation/ABI/stable/sysfs-dev; uevent's DEVNAME is the path below /dev.
Documentation/ABI/testing/sysfs-block: diskseq, which no two disks have in the life of a kernel (Linux 5.15).
"""

from __future__ import annotations

import os

BLOCK, CHARACTER = "block", "char"
_NAME = "DEVNAME="


def path_of(kind: str, device: str) -> str:
    """The path of a device's node in /dev; empty where there is no such device, or it has no name.

    kind: BLOCK or CHARACTER. device: "MAJOR:MINOR".
    """
    try:
        with open(f"/sys/dev/{kind}/{device}/uevent", encoding="utf-8", errors="surrogateescape") as file:
            names = [line.strip().removeprefix(_NAME) for line in file if line.startswith(_NAME)]
    except OSError:
        return ""
    return os.path.join("/dev", names[0]) if names else ""


def disk_of(device: str) -> str:
    """The kernel's number for the disk that has a block device's number now; empty where there is none.

    A number comes to another disk when the one that had it is gone, and this one does not. A partition has
    its disk's; so has a loop device until it gets another file.
    """
    for path in ("diskseq", "../diskseq"):
        try:
            with open(f"/sys/dev/block/{device}/{path}", encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            continue
    return ""


def path_of_character(number: int) -> str:
    """As `path_of`, of a character device by what stat(2) says of its node (st_rdev)."""
    return path_of(CHARACTER, f"{os.major(number)}:{os.minor(number)}")
