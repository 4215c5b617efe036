"""What is to be known of the Cloud Hypervisor driver without importing it."""

from __future__ import annotations

from kata_hypervisor.api_request import DISK, LIMITS, NAME, Request, Saved
from kata_hypervisor.driver_info import DriverInfo

API_BASE = "/api/v1"

# What of a disk that comes while the machine runs may be written, the broker has settled where it is shown.
_DISK = {
    "id": NAME,
    "serial": NAME,
    "path": DISK,
    "readonly": bool,
    "direct": bool,
    "num_queues": range(1, 257),
    "queue_size": range(1, 65537),
    "image_type": "Raw",
    "sparse": False,
    "rate_limiter_config": LIMITS,
}
# By multiples of a huge page. How much there is at most is the machine's to know.
_MEMORY = range(0, 1 << 45, 2 << 20)


def _put(path: str, body: object = None) -> Request:
    return Request("PUT", API_BASE + path, body)


CLOUD_HYPERVISOR = DriverInfo(
    "clh",
    program="cloud-hypervisor",
    default_path="/usr/bin/cloud-hypervisor",
    children=("cloud-hypervisor", "virtiofsd"),
    machine="kata_hypervisor.cloud_hypervisor.driver:CloudHypervisorDriver",
    tested=("51.1", "54.0"),
    vcpu_threads=r"vcpu(\d+)",
    seal_features={"": frozenset()},
    api_requests=(
        _put("/vm.boot"),
        _put("/vm.pause"),
        _put("/vm.resume"),
        _put("/vm.resize", {"desired_vcpus": range(1, 1025), "desired_ram?": _MEMORY}),
        _put("/vm.add-disk", _DISK),
        _put("/vm.remove-device", {"id": NAME}),
        _put("/vm.snapshot", {"destination_url": Saved("file://{}")}),
        _put("/vmm.shutdown"),
    ),
    confined="its own filters, a thread each, two on a virtual CPU, and a filter of this runtime below "
    "them, also on its main thread, which only waits: disable_seccomp",
    verified="what the kernel reports of every thread, before the guest runs and after",
)
