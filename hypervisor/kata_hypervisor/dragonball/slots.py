"""Slots: places for devices that are plugged in while the guest runs.

A slot's device context exists before the process is sealed; what is plugged in later is only a descriptor. An
empty slot's device is hidden by its ACPI state. It is harmless to a guest that touches it nevertheless: a
drive without a disk in it, a network interface without a tap.

    empty -> plugged: the device gets its file, its state is "present", the kernel is notified.
    plugged -> left: the file is closed and the device reports that it is empty. Linux keeps its driver
        (it takes an ACPI device away, but not the virtio device behind it), so the slot stays present.
    left -> plugged: the driver is notified of the change; it takes only what fits what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kata_hypervisor.dragonball.layout import SLOTS
from kata_hypervisor.dragonball.virtio.device import HotplugDevice
from kata_hypervisor.dragonball.virtio.mmio import Registers

PRESENT = 0xF
"""ACPI specification 6.5, 6.3.7: present, enabled, shown, working"""

D = TypeVar("D", bound=HotplugDevice)


@dataclass(slots=True)
class Slot(Generic[D]):
    """A place for a device. holder: the name of what is in it, or None."""

    number: int
    device: D
    registers: Registers
    holder: str | None = None

    @property
    def driven(self) -> bool:
        """Whether a driver of the guest has taken the device."""
        return self.registers.running

    @property
    def fresh(self) -> bool:
        """Whether no driver of the guest has ever touched the device."""
        return self.registers.status == 0


class States:
    """A PortDevice: a byte for each slot, which the guest's kernel reads as its _STA.

    announce: lets the kernel look through the slots.
    """

    def __init__(self, announce: Callable[[], object]) -> None:
        self.announce = announce
        self._states: list[int] = []

    def add(self) -> int:
        """Make a slot; return its number."""
        self._states.append(0)
        return len(self._states) - 1

    def show(self, number: int) -> None:
        """Let the guest find what is in a slot."""
        self._states[number] = PRESENT
        self.announce()

    def hide(self, number: int) -> None:
        """Let a guest that has not looked yet find nothing."""
        self._states[number] = 0

    @property
    def used(self) -> bool:
        """Whether the guest was shown what is in a slot."""
        return any(self._states)

    def read_port(self, port: int, size: int) -> int:
        """See PortDevice; whatever the width, one slot's state."""
        return self._states[port - SLOTS]

    def write_port(self, port: int, value: int, size: int) -> None:
        """See PortDevice: a guest cannot plug anything."""
