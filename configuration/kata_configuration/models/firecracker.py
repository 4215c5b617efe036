"""The table [hypervisor.firecracker]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import MachineTable


class Firecracker(MachineTable):
    """How Firecracker is started and confined."""

    title: ClassVar[str] = "Firecracker"

    path: machine.ProgramPath = Path("/usr/bin/firecracker")
    valid_hypervisor_paths: machine.ValidHypervisorPaths = ()
    jailer_path: machine.JailerPath = None
    valid_jailer_paths: machine.ValidJailerPaths = ()
    kernel: machine.KernelOrNone
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
    default_vcpus: machine.DefaultVcpus = Field(1, ge=1, le=32)
    default_maxvcpus: machine.DefaultMaxVcpus = Field(0, ge=0, le=32)
    default_memory: machine.DefaultMemory = Field(512, ge=128, le=16 * 1024 * 1024)
    overhead_vcpus: machine.OverheadVcpus = Field(0.2, ge=0, le=32)
    overhead_memory: machine.OverheadMemory = Field(96, ge=0, le=16 * 1024 * 1024)
    enable_hugepages: machine.EnableHugepages = False
    disable_seccomp: machine.DisableSeccomp = False
    honor_unconfined: machine.HonorUnconfined = False
    shared_fs: device.NoSharedFs = "none"
    block_device_driver: Annotated[Literal["virtio-blk-mmio"], device.BLOCK_DEVICE_DRIVER] = "virtio-blk-mmio"
    disk_rate_limiter_bw_max_rate: device.DiskBandwidth = 0
    disk_rate_limiter_bw_one_time_burst: device.DiskBandwidthBurst = 0
    disk_rate_limiter_ops_max_rate: device.DiskOperations = 0
    disk_rate_limiter_ops_one_time_burst: device.DiskOperationsBurst = 0
    rx_rate_limiter_max_rate: device.ReceiveRate = 0
    tx_rate_limiter_max_rate: device.SendRate = 0
    enable_annotations: machine.EnableAnnotations = ()
    enable_debug: machine.EnableDebug = False
    log_level: machine.HypervisorLogLevel = "info"

    @property
    def confined(self) -> bool:
        """Whether disable_seccomp leaves the filter on."""
        return not self.disable_seccomp

    @property
    def program(self) -> Path | None:
        """See HypervisorTable."""
        return self.path

    @property
    def honors_unconfined(self) -> bool | None:
        """See HypervisorTable."""
        return self.honor_unconfined
