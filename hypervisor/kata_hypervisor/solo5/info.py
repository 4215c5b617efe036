"""What is to be known of the drivers of Solo5's tenders without importing them."""

from __future__ import annotations

from kata_hypervisor.driver_info import DriverInfo

SOLO5_HVT = DriverInfo(
    "solo5-hvt",
    program="solo5-hvt",
    default_path="/usr/bin/solo5-hvt",
    children=("solo5-hvt",),
    unikernel="kata_hypervisor.solo5.tender:Hvt",
    unikernels=("hvt",),
    tested=("0.8", "0.12"),
    seal_features={"": frozenset()},
    confined="its own filter on the whole process, always; before 0.11 one of this runtime, installed "
    "before the program is executed: disable_seccomp, honor_unconfined",
    verified="what the kernel reports of every thread, right after the unikernel has started; before "
    "0.11, before the program is executed",
    unconfined="before 0.11, a unikernel whose container has no seccomp profile runs without the filter",
)

SOLO5_SPT = DriverInfo(
    "solo5-spt",
    program="solo5-spt",
    default_path="/usr/bin/solo5-spt",
    children=("solo5-spt",),
    unikernel="kata_hypervisor.solo5.tender:Spt",
    unikernels=("spt",),
    tested=("0.11", "0.12"),
    seal_features={"": frozenset()},
    confined="its own filter on the whole process, always",
    verified="what the kernel reports of every thread, right after the unikernel has started",
)
