"""The table [hypervisor.qemu]: what the driver honours. What it does not honour yet: qemu_planned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import (
    OURS,
    About,
    Annotation,
    CommaList,
    Effect,
    Form,
    MachineTable,
    Needs,
    Text,
    malformed,
)
from kata_configuration.sandbox_option import DENY_ALL, FORM, find_faults, is_on


class QemuHypervisor(MachineTable):
    """How QEMU is started and confined."""

    title: ClassVar[str] = "QEMU"
    aliases: ClassVar[Mapping[str, str]] = {"seccomp_sandbox": "seccompsandbox"}

    path: machine.ProgramPath = Path("/usr/bin/qemu-system-x86_64")
    valid_hypervisor_paths: machine.ValidHypervisorPaths = ()
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
    firmware: machine.Firmware = None
    valid_firmware_paths: machine.ValidFirmwarePaths = ()
    machine_type: Annotated[
        Literal["q35", "pc"],
        About("The machine that QEMU emulates.", "Kata 3.0.0", takes_effect_in=Effect.MACHINE),
    ] = "q35"
    machine_accelerators: Annotated[
        CommaList,
        About(
            "Comma-separated properties appended to QEMU's -machine option.",
            "Kata 3.0.0",
            takes_effect_in=Effect.MACHINE,
        ),
        Annotation(loosens="choose properties of QEMU's machine"),
    ] = ""
    cpu_features: machine.CpuFeatures = ""
    disable_nested_virtualization: machine.DisableNestedVirtualization = True
    accelerator: Annotated[
        Literal["kvm", "tcg"],
        About(
            "What runs the guest's instructions: the kernel's KVM, or tcg, QEMU's slow emulation; one is "
            "never replaced by the other silently.",
            OURS,
            takes_effect_in=Effect.MACHINE,
        ),
    ] = "kvm"
    default_vcpus: machine.DefaultVcpus = Field(1, ge=1, le=255)
    default_maxvcpus: machine.DefaultMaxVcpus = Field(0, ge=0, le=255)
    default_memory: machine.DefaultMemory = Field(512, ge=128, le=16 * 1024 * 1024)
    default_maxmemory: machine.DefaultMaxMemory = Field(0, ge=0, le=16 * 1024 * 1024)
    enable_virtio_mem: machine.EnableVirtioMem = True
    overhead_vcpus: machine.OverheadVcpus = Field(0.2, ge=0, le=255)
    overhead_memory: machine.OverheadMemory = Field(96, ge=0, le=16 * 1024 * 1024)
    enable_mem_prealloc: machine.EnableMemPrealloc = False
    enable_hugepages: machine.EnableHugepages = False
    reclaim_guest_freed_memory: machine.ReclaimGuestFreedMemory = False
    seccompsandbox: Annotated[
        Text,
        About(
            "QEMU's own seccomp filter, the value of its -sandbox option: every thread of QEMU is proved "
            'to be under it before the guest runs; "off" runs QEMU unconfined.',
            "Kata 3.20.0",
            takes_effect_in=Effect.FILTER,
        ),
        Form(FORM),
        Annotation(loosens=machine.NO_FILTER),
    ] = DENY_ALL
    honor_unconfined: machine.HonorUnconfined = False
    block_device_cache_direct: device.BlockDeviceCacheDirect = False
    block_device_cache_noflush: device.BlockDeviceCacheNoflush = False
    block_device_logical_sector_size: device.LogicalSectorSize = 0
    block_device_physical_sector_size: device.PhysicalSectorSize = 0
    queue_size: device.QueueSize = Field(128, ge=4, le=1024)
    num_queues: device.NumQueues = 1
    enable_iothreads: Annotated[
        bool,
        About(
            "Serve block devices in a thread of their own, and not in QEMU's main loop.",
            "Kata 3.0.0",
            takes_effect_in=Effect.MACHINE,
        ),
    ] = False
    indep_iothreads: Annotated[
        int,
        About(
            "Further threads, among which block devices that come later are distributed; 0 leaves them to "
            "the one of enable_iothreads.",
            "Kata 3.32.0",
            takes_effect_in=Effect.MACHINE,
        ),
        Needs("enable_iothreads"),
    ] = Field(0, ge=0, le=8)
    network_queues: device.NetworkQueues = 1
    disable_vhost_net: device.DisableVhostNet = False
    shared_fs: device.SharedFs = "virtio-fs"
    virtio_fs_daemon: device.VirtioFsDaemon = Path("/usr/lib/qemu/virtiofsd")
    valid_virtio_fs_daemon_paths: device.ValidVirtioFsDaemonPaths = ()
    virtio_fs_extra_args: device.VirtioFsExtraArgs = ()
    virtio_fs_cache: device.VirtioFsCache = "auto"
    virtio_fs_queue_size: device.VirtioFsQueueSize = Field(1024, ge=2, le=1024)
    entropy_source: machine.EntropySource = Path("/dev/urandom")
    valid_entropy_sources: machine.ValidEntropySources = ()
    enable_annotations: machine.EnableAnnotations = ()
    enable_debug: machine.EnableDebug = False
    log_level: machine.HypervisorLogLevel = "info"

    @field_validator("seccompsandbox")
    @classmethod
    def _check_sandbox(cls, value: str) -> str:
        faults = find_faults(value)
        if faults:
            raise malformed(faults[0].message, faults[0].hint, sandbox_faults=faults)
        return value

    @property
    def tap_queues(self) -> int:
        """See HypervisorTable."""
        return self.network_queues

    @property
    def confined(self) -> bool:
        """Whether the configuration asks QEMU for a seccomp filter."""
        return is_on(self.seccompsandbox)

    @property
    def seccomp_setting(self) -> str:
        """See HypervisorTable."""
        return self.seccompsandbox

    @property
    def program(self) -> Path | None:
        """See HypervisorTable."""
        return self.path

    @property
    def file_daemon(self) -> Path | None:
        """See HypervisorTable."""
        return self.virtio_fs_daemon if self.shares_files else None

    @property
    def honors_unconfined(self) -> bool | None:
        """See HypervisorTable."""
        return self.honor_unconfined

    @property
    def needs_kvm(self) -> bool:
        """Whether the configuration asks QEMU for KVM, and not for emulation."""
        return self.accelerator == "kvm"
