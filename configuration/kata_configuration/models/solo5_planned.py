"""Keys of [hypervisor.solo5-hvt] and [hypervisor.solo5-spt] that no driver honours yet. See qemu_planned."""

from __future__ import annotations

from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import HypervisorTable


class Solo5HvtPlanned(HypervisorTable):
    """What the driver of solo5-hvt will honour."""

    log_level: machine.HypervisorLogLevel = "info"


class Solo5SptPlanned(HypervisorTable):
    """What the driver of solo5-spt will honour."""

    log_level: machine.HypervisorLogLevel = "info"
