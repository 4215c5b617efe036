"""Keys of [hypervisor.qemu] that the driver does not honour yet; moving one to qemu.py accepts it.

The default of each is what the driver does without it, so a file may say so: only another value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import About, HypervisorTable, Indifferent, Instead, Protects
from kata_configuration.models.subtables import (
    Factory,
    GuestExtensionImage,
    PlannedFactory,
    RootlessUserKey,
)

OWN_PORTS = Instead("a machine has a port for each disk that it may get later", lost=False)
NO_IOMMU = "the machine has no virtual IOMMU"


class QemuPlanned(HypervisorTable):
    """What the driver of QEMU will honour."""

    aliases: ClassVar[Mapping[str, str]] = {"dbg_monitor_socket": "extra_monitor_socket"}

    guest_extension_images: Annotated[
        tuple[GuestExtensionImage, ...],
        Field(strict=False),
        About("File system images that the guest gets beside its own.", "Kata 4.0.0"),
        Instead(
            "the guest has its own image and no other",
            advice="remove it, and give the files to the guest by sandbox_bind_mounts in [runtime]",
        ),
    ] = ()
    disable_nesting_checks: Annotated[
        bool,
        About("Do not look whether the host itself is a virtual machine.", "Kata 3.0.0"),
        Indifferent(),
        Instead("nothing looks whether the host is a virtual machine; kata-ctl check tries what it can run"),
    ] = False
    memory_slots: machine.MemorySlots = Field(10, ge=1, le=256)
    vm_rootfs_driver: Annotated[device.BlockDriver, device.VM_ROOTFS_DRIVER, device.ONE_DRIVER] = (
        "virtio-blk-pci"
    )
    block_device_driver: Annotated[device.BlockDriver, device.BLOCK_DEVICE_DRIVER, device.ONE_DRIVER] = (
        "virtio-blk-pci"
    )
    block_device_aio: Annotated[
        Literal["io_uring", "native", "threads"],
        About("How QEMU reads and writes block devices.", "Kata 3.20.0"),
        Instead(
            "threads of QEMU read and write block devices: no filter sees what io_uring does", lost=False
        ),
    ] = "threads"
    default_bridges: Annotated[
        int, About("PCI bridges that devices can be added to.", "Kata 3.0.0"), OWN_PORTS
    ] = Field(1, ge=0, le=5)
    cold_plug_vfio: Annotated[
        Literal["no-port", "root-port", ""],
        About(
            "The kind of port that host devices are given to the machine on before it starts.", "Kata 3.31.0"
        ),
        device.NO_VFIO,
    ] = "no-port"
    pcie_root_port: Annotated[
        int, About("PCIe root ports that devices can be added to.", "Kata 3.0.0"), OWN_PORTS
    ] = Field(0, ge=0, le=16)
    pcie_switch_port: Annotated[
        int, About("PCIe switch ports that devices can be added to.", "Kata 3.17.0"), OWN_PORTS
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
        Instead(
            "QEMU has one monitor, which the pod's broker holds, and which takes checked commands only",
            advice="remove it, and set enable_debug to have what QEMU says in the log",
        ),
    ] = ""
    rootless: machine.Rootless = False
    rootless_user: RootlessUserKey = None
    selinux_label: machine.SelinuxLabel = ""
    disable_selinux: machine.DisableSelinux = False
    disable_guest_selinux: machine.DisableGuestSelinux = True
    confidential_guest: machine.ConfidentialGuest = False
    sev_snp_guest: machine.SevSnpGuest = False
    snp_guest_policy: Annotated[
        int,
        About("The policy of a SEV-SNP guest, as AMD defines its bits.", "Kata 3.28.0"),
        machine.NOT_CONFIDENTIAL,
        Protects(),
    ] = Field(0x30000, ge=0, le=2**32 - 1)
    tdx_quote_generation_service_socket_port: Annotated[
        int,
        About("The vsock port of the host's service that signs quotes of TDX guests.", "Kata 3.18.0"),
        machine.NOT_CONFIDENTIAL,
    ] = Field(4050, ge=0, le=2**32 - 1)
    initdata: machine.Initdata = ""
    factory: PlannedFactory = Factory()
