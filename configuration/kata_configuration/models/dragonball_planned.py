"""Keys of [hypervisor.dragonball] that the driver does not honour yet. See qemu_planned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import HypervisorTable


class DragonballPlanned(HypervisorTable):
    """What the in-process machine will honour."""

    default_maxmemory: machine.DefaultMaxMemory = Field(0, ge=0, le=16 * 1024 * 1024)
    enable_guest_swap: machine.EnableGuestSwap = False
    guest_swap_path: machine.GuestSwapPath = Path("/run/kata-containers/swap")
    guest_swap_size_percent: device.GuestSwapSize = 100
    guest_swap_create_threshold_secs: device.GuestSwapThreshold = 60
    block_device_driver: Annotated[
        Literal["virtio-blk-mmio", "virtio-blk-pci"], device.BLOCK_DEVICE_DRIVER
    ] = "virtio-blk-mmio"
    vm_rootfs_driver: Annotated[Literal["virtio-blk-mmio", "virtio-blk-pci"], device.VM_ROOTFS_DRIVER] = (
        "virtio-blk-mmio"
    )
    block_device_cache_direct: device.BlockDeviceCacheDirect = False
    disk_rate_limiter_bw_max_rate: device.DiskBandwidth = 0
    disk_rate_limiter_bw_one_time_burst: device.DiskBandwidthBurst = 0
    disk_rate_limiter_ops_max_rate: device.DiskOperations = 0
    disk_rate_limiter_ops_one_time_burst: device.DiskOperationsBurst = 0
    queue_size: device.QueueSize = 128
    num_queues: device.NumQueues = 1
    network_queues: device.NetworkQueues = 1
    disable_vhost_net: device.DisableVhostNet = False
    guest_hook_path: machine.GuestHookPath = ""
