"""Cloud Hypervisor's command line and its description of a machine, as pure functions.

Sources: cloud-hypervisor(1) and docs/api.md of Cloud Hypervisor 51 to 54; its OpenAPI description. The API's
socket, the console and the events are descriptors that it inherits: of these it leaves nothing on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_hypervisor.cloud_hypervisor import saved
from kata_hypervisor.contract import Disk, Tap, VmSpec
from kata_hypervisor.kernel_line import is_partitioned, kernel_line
from kata_hypervisor.machine_privileges import machine_privileges
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.rate_limiter import rate_limiter

if TYPE_CHECKING:
    from kata_configuration.models.cloud_hypervisor import CloudHypervisor as Table

API, CONSOLE, EVENTS = 3, 4, 5
"""Descriptors in Cloud Hypervisor: the API's listening socket, and two pipes to write to."""

GUEST_CID = 3
"""The guest's vsock id; each machine has its own socket, so all may have the same."""

MIB = 1 << 20

HUGE_PAGES = {"hugepages": True, "hugepage_size": 2 * MIB}

KERNEL_PARAMETERS = ("no_timer_check",)

Json = dict[str, Any]


class Sockets(NamedTuple):
    """Paths of the sockets that Cloud Hypervisor makes (vsock) or connects to (filesystem)."""

    vsock: Path
    filesystem: Path


def command_line(table: Table) -> list[str]:
    """Build the arguments. The filter is always named: a default is a promise of somebody else."""
    return [
        str(table.path),
        *("--api-socket", f"fd={API}"),
        *("--event-monitor", f"fd={EVENTS}"),
        *("--seccomp", "true" if table.confined else "false"),
        *(("-v",) if table.enable_debug else ()),
    ]


def shown(table: Table, spec: VmSpec) -> Privileges:
    """What Cloud Hypervisor is shown of the host for this machine: what it is asked to open."""
    data: list[Path] = []
    if spec.template is not None:
        data = [spec.directory / saved.VIEW, *(spec.template / name for name in saved.STATE)]
    source = table.entropy_source
    files, devices = ((), (source,)) if source.is_char_device() else ((source,), ())
    return machine_privileges(spec, data=data, files=files, devices=devices, written=(CONSOLE,))


def vm_config(table: Table, spec: VmSpec, sockets: Sockets) -> Json:
    """Describe the machine: the body of vm.create, without the network, which is added with descriptors.

    Raises:
        LaunchError: the kernel's command line is too long.
    """
    payload = {
        "kernel": str(spec.kernel),
        "cmdline": kernel_line(
            KERNEL_PARAMETERS, spec, quiet=not table.enable_debug, partitioned=is_partitioned(spec.image)
        ),
    }
    if spec.initrd is not None:
        payload["initramfs"] = str(spec.initrd)
    config: Json = {
        "payload": payload,
        "cpus": {
            "boot_vcpus": spec.vcpus,
            "max_vcpus": spec.most.vcpus if spec.most is not None else spec.vcpus,
            "nested": not table.disable_nested_virtualization,
        },
        # Shared, because virtiofsd reads and writes what the guest hands it in its memory.
        "memory": {
            "size": spec.memory_mib * MIB,
            "shared": spec.shared is not None,
            "prefault": table.enable_mem_prealloc,
            **(HUGE_PAGES if table.enable_hugepages else {}),
            **_later_memory(spec.later_memory_mib),
        },
        "rng": {"src": str(table.entropy_source)},
        # A 16550: the kernel writes to it long before it knows virtio, so an early panic is seen.
        "serial": {"mode": "File", "file": f"/proc/self/fd/{CONSOLE}"},
        "console": {"mode": "Off"},
        "vsock": {"cid": GUEST_CID, "socket": str(sockets.vsock)},
        "disks": [disk_config(table, disk) for disk in _disks(spec)],
    }
    if table.reclaim_guest_freed_memory:
        config["balloon"] = {"size": 0, "free_page_reporting": True}
    if spec.shared is not None:
        config["fs"] = [
            {
                "tag": spec.shared.tag,
                "socket": str(sockets.filesystem),
                "num_queues": 1,
                "queue_size": table.virtio_fs_queue_size,
            }
        ]
    return config


def _later_memory(memory_mib: int) -> Json:
    return {"hotplug_method": "VirtioMem", "hotplug_size": memory_mib * MIB} if memory_mib else {}


def _disks(spec: VmSpec) -> Iterator[Disk]:
    if spec.image is not None:
        yield Disk("image", spec.image, read_only=True)
    yield from spec.disks


def disk_config(table: Table, disk: Disk) -> Json:
    """Describe a block device. The format is stated: a guest could write another's header into a raw disk."""
    config: Json = {
        "id": disk.id,
        "serial": disk.id,
        "path": str(disk.path),
        "readonly": disk.read_only,
        "direct": table.block_device_cache_direct,
        "num_queues": table.num_queues,
        "queue_size": table.queue_size,
        "image_type": "Raw",
        "sparse": not disk.read_only,
    }
    if limits := rate_limiter(table):
        config["rate_limiter_config"] = limits
    return config


def net_config(table: Table, tap: Tap) -> Json:
    """Describe a network device, whose tap comes as a descriptor for each pair of queues, or by its name."""
    config: Json = {"id": tap.id, "mac": tap.mac}
    if tap.fds:
        return config | {"num_queues": 2 * len(tap.fds)}
    return config | {"tap": tap.name, "num_queues": 2 * table.network_queues}
