"""What is to be known of the QEMU driver without importing it."""

from __future__ import annotations

from kata_hypervisor.api_request import NAME, SET
from kata_hypervisor.driver_info import DriverInfo

CPU_MODELS = {"kvm": "host-x86_64-cpu", "tcg": "max-x86_64-cpu"}
"""What a CPU that comes later is, by accelerator: what those at boot are, `-cpu` says how for all of them."""

MOST_CPUS = 255

LATER_MEMORY = "later-memory"
LATER_MEMORY_PATH = f"/machine/peripheral/{LATER_MEMORY}"
"""The virtio-mem device, by its name on the command line and in QEMU's tree of objects."""

MOST_LATER_DISKS = 8
"""Disks that a machine may get while it runs, at a time."""

BUS_OF_PC = "pci.0"

BLOCK_THREADS = tuple(f"block-{number}" for number in range(1 + MOST_LATER_DISKS))
"""Threads that serve block devices: the first the image, each of the others a later disk at least."""

QUEUES, QUEUE_SIZES = range(1, 257), tuple(1 << exponent for exponent in range(2, 11))
SECTOR_SIZES = tuple(1 << exponent for exponent in range(9, 17))
"""What a later disk may be like, in bytes, requests and queues: what the configuration's keys allow."""


def cpu_name(number: int) -> str:
    """Return how QEMU calls the CPU in a socket. Those that a machine has at boot have no name, and stay."""
    return f"cpu-{number}"


def disk_name(number: int) -> str:
    """Return how QEMU calls the later disk in a place, and what is behind it."""
    return f"disk-{number}"


def slot(number: int) -> str:
    """Return the port of the later disk in a place, on a q35 board."""
    return f"slot-{number}"


_CPU = tuple(map(cpu_name, range(1, MOST_CPUS)))
_ADD_CPU = {
    "driver": tuple(CPU_MODELS.values()),
    "id": _CPU,
    "socket-id": range(1, MOST_CPUS),
    "core-id": 0,
    "thread-id": 0,
}
# By multiples of a huge page. How much there is at most is the device's to know.
_REQUEST_MEMORY = {
    "path": LATER_MEMORY_PATH,
    "property": "requested-size",
    "value": range(0, 1 << 45, 2 << 20),
}
_DISK = tuple(map(disk_name, range(MOST_LATER_DISKS)))
_ADD_DISK = {
    "driver": "virtio-blk-pci",
    "bus": (BUS_OF_PC, *map(slot, range(MOST_LATER_DISKS))),
    "id": _DISK,
    "drive": _DISK,
    "serial": NAME,
    "num-queues": QUEUES,
    "queue-size": QUEUE_SIZES,
    "logical_block_size?": SECTOR_SIZES,
    "physical_block_size?": SECTOR_SIZES,
    "iothread?": BLOCK_THREADS,
}
_SETS = range(1, 1 << 31)
_CONTENT = {
    "driver": "raw",
    "node-name": _DISK,
    "read-only": bool,
    "cache": {"direct": bool, "no-flush": bool},
    "file": {"driver": "host_device", "filename": SET, "locking": "off"},
}

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
    vcpu_threads=r"CPU (\d+)/(?:KVM|TCG)",
    vhost_vsock="optional",
    seal_features={"": frozenset({"serial"})},
    monitor_commands={
        **dict.fromkeys(("cont", "stop", "query-status", "quit")),
        **dict.fromkeys(("query-hotpluggable-cpus", "query-memory-devices")),
        "device_add": (_ADD_CPU, _ADD_DISK),
        "device_del": {"id": _CPU + _DISK},
        "qom-set": _REQUEST_MEMORY,
        "add-fd": {"fdset-id": _SETS},
        "remove-fd": {"fdset-id": _SETS},
        "blockdev-add": _CONTENT,
        "blockdev-del": {"node-name": _DISK},
    },
    confined="a filter of this runtime, and above it its own on the whole process: seccompsandbox; with a "
    "unikernel in it, all four groups denied",
    verified="what the kernel reports of every thread, before the guest runs and after",
    unconfined="a unikernel whose container has no seccomp profile runs without the filter",
)
