"""The table [hypervisor.clh], which may also be written [hypervisor.cloud-hypervisor]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import MachineTable


class CloudHypervisor(MachineTable):
    """How Cloud Hypervisor is started and confined."""

    title: ClassVar[str] = "Cloud Hypervisor"

    path: machine.ProgramPath = Path("/usr/bin/cloud-hypervisor")
    valid_hypervisor_paths: machine.ValidHypervisorPaths = ()
    kernel: machine.Kernel
    valid_kernel_paths: machine.ValidKernelPaths = ()
    initrd: machine.Initrd = None
    valid_initrd_paths: machine.ValidInitrdPaths = ()
    image: machine.Image = None
    valid_image_paths: machine.ValidImagePaths = ()
    rootfs_type: machine.RootfsType = "erofs"
    kernel_verity_params: machine.KernelVerityParams = ""
    guest_hook_path: machine.GuestHookPath = ""
    kernel_params: machine.KernelParams = ""
    disable_nested_virtualization: machine.DisableNestedVirtualization = True
    default_vcpus: machine.DefaultVcpus = Field(1, ge=1, le=254)
    default_maxvcpus: machine.DefaultMaxVcpus = Field(0, ge=0, le=254)
    default_memory: machine.DefaultMemory = Field(512, ge=128, le=16 * 1024 * 1024)
    default_maxmemory: machine.DefaultMaxMemory = Field(0, ge=0, le=16 * 1024 * 1024)
    overhead_vcpus: machine.OverheadVcpus = Field(0.2, ge=0, le=254)
    overhead_memory: machine.OverheadMemory = Field(96, ge=0, le=16 * 1024 * 1024)
    enable_mem_prealloc: machine.EnableMemPrealloc = False
    enable_hugepages: machine.EnableHugepages = False
    reclaim_guest_freed_memory: machine.ReclaimGuestFreedMemory = False
    disable_seccomp: machine.DisableSeccomp = False
    shared_fs: device.SharedFs = "virtio-fs"
    virtio_fs_daemon: device.VirtioFsDaemon = Path("/usr/lib/qemu/virtiofsd")
    valid_virtio_fs_daemon_paths: device.ValidVirtioFsDaemonPaths = ()
    virtio_fs_extra_args: device.VirtioFsExtraArgs = ()
    virtio_fs_cache: device.VirtioFsCache = "auto"
    virtio_fs_queue_size: device.VirtioFsQueueSize = 1024
    block_device_driver: Annotated[Literal["virtio-blk-pci"], device.BLOCK_DEVICE_DRIVER] = "virtio-blk-pci"
    block_device_cache_direct: device.BlockDeviceCacheDirect = False
    disk_rate_limiter_bw_max_rate: device.DiskBandwidth = 0
    disk_rate_limiter_bw_one_time_burst: device.DiskBandwidthBurst = 0
    disk_rate_limiter_ops_max_rate: device.DiskOperations = 0
    disk_rate_limiter_ops_one_time_burst: device.DiskOperationsBurst = 0
    queue_size: device.QueueSize = 128
    num_queues: device.NumQueues = 1
    network_queues: device.NetworkQueues = 1
    entropy_source: machine.EntropySource = Path("/dev/urandom")
    valid_entropy_sources: machine.ValidEntropySources = ()
    enable_annotations: machine.EnableAnnotations = ()
    enable_debug: machine.EnableDebug = False
    log_level: machine.HypervisorLogLevel = "info"

    @property
    def tap_queues(self) -> int:
        """See HypervisorTable."""
        return self.network_queues

    @property
    def confined(self) -> bool:
        """Whether disable_seccomp leaves the filter on."""
        return not self.disable_seccomp

    @property
    def program(self) -> Path | None:
        """See HypervisorTable."""
        return self.path

    @property
    def file_daemon(self) -> Path | None:
        """See HypervisorTable."""
        return self.virtio_fs_daemon if self.shares_files else None
