"""Keys of [hypervisor.clh] that the driver will not honour from its beginning. See qemu_planned."""

from __future__ import annotations

from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import HypervisorTable


class CloudHypervisorPlanned(HypervisorTable):
    """What the driver of Cloud Hypervisor will honour later."""

    confidential_guest: machine.ConfidentialGuest = False
    sev_snp_guest: machine.SevSnpGuest = False
