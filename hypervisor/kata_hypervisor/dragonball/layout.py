"""Where things are in the guest's physical memory and port space.

Source: the layout that microVMs agree on (Firecracker's docs, Linux' Documentation/x86/boot.rst); a guest
sees the addresses through boot_params, ACPI and the e820 map, and relies on none of them.
"""

from __future__ import annotations

PAGE = 0x1000
MIB = 1 << 20
GIB = 1 << 30
HUGE_PAGE = 2 * MIB

GDT = 0x500
IDT = 0x520
START_INFO = 0x6000
START_INFO_MODULES = 0x6040
START_INFO_MEMORY = 0x6100
BOOT_PARAMS = 0x7000
STACK = 0x8FF0
PML4, PDPT, PAGE_DIRECTORY = 0x9000, 0xA000, 0xB000
COMMAND_LINE = 0x20000

LOW_MEMORY_END = 0x9FC00
ACPI_TABLES = 0xE0000
ACPI_TABLES_END = 0x100000
HIGH_MEMORY = 0x100000

MMIO_GAP = 0xC0000000
"""End of the memory below 4 GiB; what follows is for devices."""
MMIO_GAP_END = 4 * GIB

VIRTIO = MMIO_GAP
VIRTIO_WINDOW = PAGE

IO_APIC = 0xFEC00000
LOCAL_APIC = 0xFEE00000
TSS = 0xFFFBD000
IDENTITY_MAP = 0xFFFBC000

COM1, COM1_IRQ = 0x3F8, 4
RTC = 0x70
KEYBOARD_COMMAND = 0x64
SLEEP_CONTROL, SLEEP_STATUS = 0x600, 0x601
SLOTS, SLOTS_IRQ = 0x610, 9
"""Ports of the slots' states, a byte each, and the pin that says that one has changed."""

VIRTIO_INTERRUPTS = (*range(16, 24), *range(5, 8), *range(10, 16))
"""Pins of the I/O APIC for virtio devices; the others have an owner on every PC."""
