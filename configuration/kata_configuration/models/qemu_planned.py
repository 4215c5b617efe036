"""Keys of [hypervisor.qemu] that the driver does not honour yet; moving one to qemu.py accepts it.

The default of each is what the driver does without it, so a file may say so: only another value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import About, HypervisorTable, Indifferent, Instead, Needs, Protects
from kata_configuration.models.subtables import Factory, GuestExtensionImage, RootlessUserKey

NO_IOMMU = "the machine has no virtual IOMMU"


class QemuPlanned(HypervisorTable):
    """What the driver of QEMU will honour."""

    aliases: ClassVar[Mapping[str, str]] = {"dbg_monitor_socket": "extra_monitor_socket"}

    firmware: machine.Firmware = None
    valid_firmware_paths: machine.ValidFirmwarePaths = ()
    guest_extension_images: Annotated[
        tuple[GuestExtensionImage, ...],
        Field(strict=False),
        About("File system images that the guest gets beside its own.", "Kata 4.0.0"),
    ] = ()
    disable_nesting_checks: Annotated[
        bool, About("Do not look whether the host itself is a virtual machine.", "Kata 3.0.0"), Indifferent()
    ] = False
    memory_slots: machine.MemorySlots = Field(10, ge=1, le=256)
    reclaim_guest_freed_memory: machine.ReclaimGuestFreedMemory = False
    vm_rootfs_driver: Annotated[device.BlockDriver, device.VM_ROOTFS_DRIVER] = "virtio-blk-pci"
    block_device_driver: Annotated[device.BlockDriver, device.BLOCK_DEVICE_DRIVER] = "virtio-blk-pci"
    block_device_aio: Annotated[
        Literal["io_uring", "native", "threads"],
        About("How QEMU reads and writes block devices.", "Kata 3.20.0"),
    ] = "io_uring"
    block_device_logical_sector_size: device.LogicalSectorSize = 0
    block_device_physical_sector_size: device.PhysicalSectorSize = 0
    enable_iothreads: Annotated[
        bool,
        About(
            "Serve block devices in a thread of their own.",
            "Kata 3.0.0",
        ),
    ] = False
    indep_iothreads: Annotated[
        int,
        About(
            "Threads for block devices that are added later; needs enable_iothreads.",
            "Kata 3.32.0",
        ),
        Needs("enable_iothreads"),
    ] = Field(0, ge=0, le=256)
    queue_size: device.QueueSize = 128
    num_queues: device.NumQueues = 1
    default_bridges: Annotated[int, About("PCI bridges that devices can be added to.", "Kata 3.0.0")] = Field(
        1, ge=0, le=5
    )
    cold_plug_vfio: Annotated[
        Literal["no-port", "root-port", ""],
        About(
            "The kind of port that host devices are given to the machine on before it starts.", "Kata 3.31.0"
        ),
    ] = "no-port"
    pcie_root_port: Annotated[
        int,
        About(
            "PCIe root ports that devices can be added to.",
            "Kata 3.0.0",
        ),
    ] = Field(0, ge=0, le=16)
    pcie_switch_port: Annotated[
        int,
        About(
            "PCIe switch ports that devices can be added to.",
            "Kata 3.17.0",
        ),
    ] = Field(0, ge=0, le=16)
    enable_iommu: Annotated[
        bool,
        About("Give the machine a virtual IOMMU.", "Kata 3.0.0"),
        Instead(f"{NO_IOMMU}, and no device of the host that its guest could put behind one"),
    ] = False
    enable_iommu_platform: Annotated[
        bool,
        About(
            "Let virtio devices use the virtual IOMMU.",
            "Kata 3.0.0",
        ),
        Instead(f"{NO_IOMMU}; the VMM reaches the guest's memory directly"),
    ] = False
    extra_monitor_socket: Annotated[
        Literal["", "hmp", "qmp", "qmp-pretty"],
        About("Open a second monitor, through which anybody who reaches it controls QEMU.", "Kata 3.29.0"),
    ] = ""
    guest_hook_path: machine.GuestHookPath = ""
    rootless: machine.Rootless = False
    rootless_user: RootlessUserKey = None
    selinux_label: machine.SelinuxLabel = ""
    disable_selinux: machine.DisableSelinux = False
    disable_guest_selinux: machine.DisableGuestSelinux = True
    confidential_guest: machine.ConfidentialGuest = False
    sev_snp_guest: machine.SevSnpGuest = False
    snp_guest_policy: Annotated[
        int, About("The policy of a SEV-SNP guest, as AMD defines its bits.", "Kata 3.28.0"), Protects()
    ] = Field(0x30000, ge=0, le=2**32 - 1)
    tdx_quote_generation_service_socket_port: Annotated[
        int, About("The vsock port of the host's service that signs quotes of TDX guests.", "Kata 3.18.0")
    ] = Field(4050, ge=0, le=2**32 - 1)
    initdata: machine.Initdata = ""
    factory: Annotated[Factory, About("Starting virtual machines from a template.", "Kata 3.23.0")] = (
        Factory()
    )
