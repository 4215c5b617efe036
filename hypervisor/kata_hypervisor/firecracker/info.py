"""What is to be known of the Firecracker driver without importing it."""

from __future__ import annotations

from kata_hypervisor.api_request import DISK, Request, Saved
from kata_hypervisor.driver_info import DriverInfo

MOST_SPARES = 12
"""Disks that may come later: of 19 interrupts, each device has one of its own."""

EMPTY = "/dev/null"
"""What a spare disk holds until it is filled: nothing, and its size is 0."""


def spare(number: int) -> str:
    """The id of a disk that is there to be filled."""
    return f"spare{number}"


def _filling(drive: str) -> Request:
    return Request("PATCH", f"/drives/{drive}", {"drive_id": drive, "path_on_host": (DISK, EMPTY)})


_SAVING = {
    "snapshot_type": "Full",
    "snapshot_path": Saved("{}/state"),
    "mem_file_path": Saved("{}/memory"),
}

FIRECRACKER = DriverInfo(
    "firecracker",
    program="firecracker",
    default_path="/usr/bin/firecracker",
    children=("firecracker",),
    machine="kata_hypervisor.firecracker.driver:FirecrackerDriver",
    unikernel="kata_hypervisor.firecracker.unikernel:FirecrackerUnikernel",
    unikernels=("firecracker",),
    tested=("1.12.1", "1.17"),
    boots_bzimage="1.17",
    vcpu_threads=r"fc_vcpu (\d+)",
    seal_features={"": frozenset()},
    api_requests=(
        Request("GET", "/"),
        Request("PUT", "/actions", {"action_type": "InstanceStart"}),
        Request("PATCH", "/vm", {"state": ("Paused", "Resumed")}),
        *map(_filling, map(spare, range(MOST_SPARES))),
        Request("PUT", "/snapshot/create", _SAVING),
    ),
    confined="its own filters, a thread each: disable_seccomp; its jailer: jailer_path",
    verified="what the kernel reports of its API's thread before the guest runs, and of every thread after",
    unconfined="a unikernel whose container has no seccomp profile runs without the filter",
)
