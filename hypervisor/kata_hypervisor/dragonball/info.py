"""What is to be known of the driver of the machine in the runtime's own process without importing it."""

from __future__ import annotations

from kata_hypervisor.driver_info import DriverInfo

_MACHINE = frozenset({"vcpu", "block", "fs", "vhost-vsock", "vhost-net", "balloon"})

# A shim holds a machine with a Linux in it, or a unikernel, and never both; the process that makes a
# template, and which no pod has, saves its machine.
DRAGONBALL = DriverInfo(
    "dragonball",
    program="dragonball",
    children=("virtiofsd",),
    machine="kata_hypervisor.dragonball.driver:Dragonball",
    unikernel="kata_hypervisor.dragonball.unikernel:InProcessUnikernel",
    unikernels=("hvt",),
    vcpu_threads=r"vcpu(\d+)",
    vhost_vsock="required",
    seal_features={
        "": _MACHINE,
        "-template": _MACHINE | {"snapshot"},
        "-unikernel": frozenset({"vcpu", "unikernel"}),
    },
    confined="the runtime's own filter, and a second one on each virtual CPU: disable_seccomp, shim_seccomp",
    verified="what the kernel reports of every thread of the runtime's process, before the guest runs and "
    "after",
)
