"""The guest's kernel command line."""

from __future__ import annotations

from pathlib import Path

from kata_hypervisor.contract import VmSpec

# cryptomgr.notests and tsc=reliable skip work. panic=-1 resets at once, which ends the machine. pci=off and
# nr_uarts: no exits to look for what is not there. rcu_expedited: a container's set-up waits for a dozen
# grace periods (mounts, cgroups), and a guest of few CPUs loses nothing by shorter ones.
KERNEL_PARAMETERS = (
    "console=ttyS0",
    "reboot=k",
    "panic=-1",
    "tsc=reliable",
    "no_timer_check",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
    "pci=off",
    "8250.nr_uarts=1",
)

PARTITION_MARK = b"\x55\xaa"


def kernel_command_line(spec: VmSpec, debug: bool) -> str:
    """Join the driver's parameters and the machine's; later ones win in the kernel."""
    parameters = [*KERNEL_PARAMETERS]
    if not debug:
        parameters.append("quiet")
    if spec.image is not None:
        device = "/dev/vda1" if has_partition_table(spec.image) else "/dev/vda"
        parameters += [f"root={device}", f"rootfstype={spec.rootfs_type}", "ro"]
    return " ".join([*parameters, *spec.kernel_parameters])


def has_partition_table(image: Path) -> bool:
    """Tell whether a disk image begins with an MBR, which every GPT disk has too (as a protective one)."""
    with image.open("rb") as file:
        return file.read(512)[510:] == PARTITION_MARK
