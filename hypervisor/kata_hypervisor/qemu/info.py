"""What is to be known of the QEMU driver without importing it."""

from __future__ import annotations

from kata_hypervisor.driver_info import DriverInfo

QEMU = DriverInfo(
    "qemu",
    program="qemu",
    default_path="/usr/bin/qemu-system-x86_64",
    install="apt-get install qemu-system-x86",
    children=("qemu", "virtiofsd"),
    machine="kata_hypervisor.qemu.driver:Qemu",
    unikernel="kata_hypervisor.qemu.unikernel:QemuUnikernel",
    unikernels=("qemu",),
    required="6.2",
    vhost_vsock="optional",
    seal_features={"": frozenset({"serial"})},
    monitor_commands=("cont", "stop", "query-status", "quit"),
    confined="its own filter on the whole process: seccompsandbox; with a unikernel in it, all four groups "
    "denied",
    verified="what the kernel reports of every thread, before the guest runs and after",
    unconfined="a unikernel whose container has no seccomp profile runs without the filter",
)
