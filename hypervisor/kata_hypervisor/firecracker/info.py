"""What is to be known of the Firecracker driver without importing it."""

from __future__ import annotations

from kata_hypervisor.driver_info import DriverInfo

FIRECRACKER = DriverInfo(
    "firecracker",
    program="firecracker",
    default_path="/usr/bin/firecracker",
    children=("firecracker",),
    machine="kata_hypervisor.firecracker.driver:FirecrackerDriver",
    unikernel="kata_hypervisor.firecracker.unikernel:FirecrackerUnikernel",
    unikernels=("firecracker",),
    tested=("1.12.1", "1.17"),
    seal_features={"": frozenset()},
    confined="its own filters, a thread each: disable_seccomp; its jailer: jailer_path",
    verified="what the kernel reports of its API's thread before the guest runs, and of every thread after",
    unconfined="a unikernel whose container has no seccomp profile runs without the filter",
)
