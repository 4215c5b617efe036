"""Keys of [hypervisor.clh] that the driver does not honour yet. See qemu_planned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from kata_configuration.models import device_keys as device
from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import HypervisorTable, Instead
from kata_configuration.models.subtables import Factory, PlannedFactory, RootlessUserKey


class CloudHypervisorPlanned(HypervisorTable):
    """What the driver of Cloud Hypervisor will honour."""

    firmware: Annotated[
        machine.Firmware,
        Instead(
            "Cloud Hypervisor starts the kernel itself, without a firmware",
            advice="remove it, and name a kernel that it starts, such as that of kata-ctl image build",
        ),
    ] = None
    valid_firmware_paths: machine.ValidFirmwarePaths = ()
    cpu_features: Annotated[
        machine.CpuFeatures,
        Instead(
            "the guest's processor has the features of the host's that Cloud Hypervisor passes on",
            advice="remove it, or use the hypervisor qemu, which takes features away",
        ),
    ] = ""
    enable_guest_swap: machine.EnableGuestSwap = False
    guest_swap_path: machine.GuestSwapPath = Path("/run/kata-containers/swap")
    guest_swap_size_percent: device.GuestSwapSize = 100
    guest_swap_create_threshold_secs: device.GuestSwapThreshold = 60
    selinux_label: machine.SelinuxLabel = ""
    disable_selinux: machine.DisableSelinux = False
    rootless: machine.Rootless = False
    rootless_user: RootlessUserKey = None
    vm_rootfs_driver: Annotated[
        Literal["virtio-blk-pci", "virtio-pmem"], device.VM_ROOTFS_DRIVER, device.ONE_DRIVER
    ] = "virtio-blk-pci"
    factory: PlannedFactory = Factory()
    confidential_guest: machine.ConfidentialGuest = False
    sev_snp_guest: machine.SevSnpGuest = False
