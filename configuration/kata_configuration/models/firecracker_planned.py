"""Keys of [hypervisor.firecracker] that the driver does not honour yet. See qemu_planned."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import HypervisorTable


class FirecrackerPlanned(HypervisorTable):
    """What the driver of Firecracker will honour."""

    default_maxmemory: Annotated[machine.DefaultMaxMemory, machine.FIXED_MEMORY] = Field(
        0, ge=0, le=16 * 1024 * 1024
    )
    selinux_label: machine.SelinuxLabel = ""
    disable_selinux: machine.DisableSelinux = False
