"""Keys of [hypervisor.dragonball] that the driver does not honour yet. See qemu_planned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import HypervisorTable, Instead

NO_LIMIT = Instead(
    "a disk is as fast as what is behind it",
    advice="remove it, or use the hypervisor clh or firecracker, which limits disks",
)
ONE_QUEUE = Instead("a disk has one queue of 256 requests", lost=False)


class DragonballPlanned(HypervisorTable):
    """What the in-process machine will honour."""

    default_maxmemory: Annotated[machine.DefaultMaxMemory, machine.FIXED_MEMORY] = Field(
        0, ge=0, le=16 * 1024 * 1024
    )
    enable_guest_swap: machine.EnableGuestSwap = False
    guest_swap_path: machine.GuestSwapPath = Path("/run/kata-containers/swap")
    guest_swap_size_percent: device.GuestSwapSize = 100
    guest_swap_create_threshold_secs: device.GuestSwapThreshold = 60
    block_device_driver: Annotated[
        Literal["virtio-blk-mmio", "virtio-blk-pci"], device.BLOCK_DEVICE_DRIVER, device.ONE_DRIVER
    ] = "virtio-blk-mmio"
    vm_rootfs_driver: Annotated[
        Literal["virtio-blk-mmio", "virtio-blk-pci"], device.VM_ROOTFS_DRIVER, device.ONE_DRIVER
    ] = "virtio-blk-mmio"
    block_device_cache_direct: Annotated[
        device.BlockDeviceCacheDirect,
        Instead(
            "disks are read and written through the host's page cache",
            advice="remove it, or use the hypervisor qemu or clh, which can go around it",
        ),
    ] = False
    disk_rate_limiter_bw_max_rate: Annotated[device.DiskBandwidth, NO_LIMIT] = 0
    disk_rate_limiter_bw_one_time_burst: Annotated[device.DiskBandwidthBurst, NO_LIMIT] = 0
    disk_rate_limiter_ops_max_rate: Annotated[device.DiskOperations, NO_LIMIT] = 0
    disk_rate_limiter_ops_one_time_burst: Annotated[device.DiskOperationsBurst, NO_LIMIT] = 0
    queue_size: Annotated[device.QueueSize, ONE_QUEUE] = 256
    num_queues: Annotated[device.NumQueues, ONE_QUEUE] = 1
    network_queues: Annotated[
        device.NetworkQueues,
        Instead(
            "a network device has one pair of queues",
            advice="remove it, or use the hypervisor qemu or clh, whose devices have several",
        ),
    ] = 1
    disable_vhost_net: Annotated[
        device.DisableVhostNet,
        Instead(
            "the host's kernel moves network packets, by vhost-net",
            advice="remove it, or use the hypervisor qemu, which can move them itself",
        ),
    ] = False
