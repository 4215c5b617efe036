"""Our filter for QEMU, below its own: its policy, for its C library, accelerator, disks, and growth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_hypervisor.seccomp import actions, compiled
from kata_hypervisor.seccomp.c_library import MUSL, libc_of
from kata_hypervisor.seccomp.child_filter import ChildFilter

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

POLICY = "qemu"
LOADING = "load"


def features(accelerator: str, libc: str, *, block: bool, grows: bool = False) -> frozenset[str]:
    """The features of the policy from the moment on when the machine is made."""
    wanted = {"block": block, "grows": grows, MUSL: libc == MUSL}
    return frozenset({accelerator, *(feature for feature, needed in wanted.items() if needed)})


def build(table: QemuTable, *, block: bool = False, grows: bool = False) -> ChildFilter:
    """The filter for a QEMU with this table.

    block: whether its guest writes to a disk. grows: whether its memory may be plugged in, and taken away.

    Raises:
        PolicyError, SealError: there is no policy for this machine, or libseccomp is missing.
        HostUnfitError: it cannot be determined which C library QEMU has.
    """
    running = features(table.accelerator, libc_of(str(table.path)), block=block, grows=grows)
    return ChildFilter(
        policy=f"{compiled.source_of(POLICY)} [{' '.join(sorted(running))}]",
        advice=f"kata-ctl seccomp show --driver qemu-{table.accelerator} prints the policy",
        code=compiled.program_of(POLICY, running, actions.NOTIFY).code,
        loading=compiled.program_of(POLICY, {*running, LOADING}, actions.NOTIFY).code,
        until_told=True,
        any_path=True,
    )
