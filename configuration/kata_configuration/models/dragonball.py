"""The table [hypervisor.dragonball]: the virtual machine in the runtime's own process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import About, Annotation, Effect, Instead, MachineTable, Needs
from kata_configuration.models.subtables import Factory


class Dragonball(MachineTable):
    """How the runtime runs virtual machines in its own process, and confines it."""

    title: ClassVar[str] = "Dragonball"

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
    default_vcpus: machine.DefaultVcpus = Field(1, ge=1, le=32)
    default_maxvcpus: machine.DefaultMaxVcpus = Field(0, ge=0, le=32)
    default_memory: machine.DefaultMemory = Field(512, ge=128, le=16 * 1024 * 1024)
    overhead_vcpus: machine.OverheadVcpus = Field(0.2, ge=0, le=32)
    overhead_memory: machine.OverheadMemory = Field(96, ge=0, le=16 * 1024 * 1024)
    enable_hugepages: machine.EnableHugepages = False
    hugepage_type: Annotated[
        Literal["hugetlbfs"],
        About(
            "Where huge pages come from: reserved ones; transparent ones are used without this too.",
            "Kata 3.3.0",
            takes_effect_in=Effect.MACHINE,
        ),
        Instead(
            "without enable_hugepages, memory is of transparent huge pages where the host offers them",
            lost=False,
        ),
        Needs("enable_hugepages"),
    ] = "hugetlbfs"
    reclaim_guest_freed_memory: machine.ReclaimGuestFreedMemory = False
    disable_seccomp: Annotated[
        bool,
        About(
            "Run the virtual machine without a seccomp filter on its process, which is the runtime's own: "
            'the same as shim_seccomp = "off" in [runtime].',
            "Kata 3.0.0",
            takes_effect_in=Effect.FILTER,
        ),
        Annotation(loosens=machine.NO_FILTER),
    ] = False
    shared_fs: device.SharedFs = "virtio-fs"
    virtio_fs_daemon: device.VirtioFsDaemon = Path("/usr/lib/qemu/virtiofsd")
    valid_virtio_fs_daemon_paths: device.ValidVirtioFsDaemonPaths = ()
    virtio_fs_extra_args: device.VirtioFsExtraArgs = ()
    virtio_fs_cache: device.VirtioFsCache = "auto"
    virtio_fs_queue_size: device.VirtioFsQueueSize = 1024
    factory: Annotated[
        Factory,
        About("Starting virtual machines from a template.", "Kata 3.23.0", takes_effect_in=Effect.MACHINE),
    ] = Factory()
    enable_annotations: machine.EnableAnnotations = ()
    enable_debug: machine.EnableDebug = False
    log_level: machine.HypervisorLogLevel = "info"

    @property
    def confined(self) -> bool:
        """Whether disable_seccomp leaves the filter on."""
        return not self.disable_seccomp

    @property
    def file_daemon(self) -> Path | None:
        """See HypervisorTable."""
        return self.virtio_fs_daemon if self.shares_files else None

    @property
    def template_path(self) -> Path | None:
        """See HypervisorTable."""
        return self.factory.template_path if self.factory.enable_template else None
