"""What is to be known of the Cloud Hypervisor driver without importing it."""

from __future__ import annotations

from kata_hypervisor.driver_info import DriverInfo

CLOUD_HYPERVISOR = DriverInfo(
    "clh",
    program="cloud-hypervisor",
    default_path="/usr/bin/cloud-hypervisor",
    children=("cloud-hypervisor", "virtiofsd"),
    machine="kata_hypervisor.cloud_hypervisor.driver:CloudHypervisorDriver",
    tested=("51.1", "54.0"),
    seal_features={"": frozenset()},
    confined="its own filters, a thread each, two on a virtual CPU, and a wrapper filter of this runtime "
    "below them, also on its main thread, which only waits: disable_seccomp",
    verified="what the kernel reports of every thread, before the guest runs and after",
)
