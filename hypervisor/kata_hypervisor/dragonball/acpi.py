"""The ACPI tables of a machine without a chipset: the hardware-reduced model.

Stock kernels find virtio-mmio devices (LNRO0005) and the serial port through the DSDT, processors through the
MADT, and the registers for power-off and reset through the FADT. Devices that may come later are in a module
(ACPI0004), each with a state (_STA) that is read from its port; the generic event device (ACPI0013) lets the
kernel look through the module again. Source: ACPI specification 6.5, chapter 5, and 5.6.9 for events.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ctypes import LittleEndianStructure, c_char, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from typing import NamedTuple

from kata_hypervisor.dragonball import aml, layout

OEM, OEM_TABLE, CREATOR = b"KATAPY", b"KATAPYVM", b"KATA"
RESET_VALUE = 0xFE
SLEEP_TYPE_OFF = 5

WBINVD, RESET_REGISTER, HARDWARE_REDUCED = 1 << 0, 1 << 10, 1 << 20
POWER_BUTTON_AS_DEVICE, SLEEP_BUTTON_AS_DEVICE = 1 << 4, 1 << 5
NO_VGA = 1 << 2
LEGACY_DEVICES = 1 << 0

BUS_CHECK = 0

LOCAL_APIC_ENTRY, IO_APIC_ENTRY = 0, 1
PROCESSOR_ENABLED = 1 << 0


class GenericAddress(LittleEndianStructure):
    """Generic Address Structure"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        *((name, c_uint8) for name in ("space_id", "bit_width", "bit_offset", "access_width")),
        ("address", c_uint64),
    )


class TableHeader(LittleEndianStructure):
    """System description table header"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("signature", c_char * 4),
        ("length", c_uint32),
        ("revision", c_uint8),
        ("checksum", c_uint8),
        ("oem_id", c_char * 6),
        ("oem_table_id", c_char * 8),
        ("oem_revision", c_uint32),
        ("creator_id", c_char * 4),
        ("creator_revision", c_uint32),
    )


class Rsdp(LittleEndianStructure):
    """Root system description pointer, revision 2"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("signature", c_char * 8),
        ("checksum", c_uint8),
        ("oem_id", c_char * 6),
        ("revision", c_uint8),
        ("rsdt_address", c_uint32),
        ("length", c_uint32),
        ("xsdt_address", c_uint64),
        ("extended_checksum", c_uint8),
        ("reserved", c_uint8 * 3),
    )


class Fadt(LittleEndianStructure):
    """Fixed ACPI description table without its header, revision 6.4; registers that we lack are left out"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("legacy", c_uint8 * (109 - 36)),
        ("iapc_boot_arch", c_uint16),
        ("reserved", c_uint8),
        ("flags", c_uint32),
        ("reset_reg", GenericAddress),
        ("reset_value", c_uint8),
        ("arm_boot_arch", c_uint16),
        ("minor_version", c_uint8),
        ("x_firmware_ctrl", c_uint64),
        ("x_dsdt", c_uint64),
        ("x_legacy", GenericAddress * 8),
        ("sleep_control_reg", GenericAddress),
        ("sleep_status_reg", GenericAddress),
        ("hypervisor_vendor", c_uint64),
    )


class MadtLocalApic(LittleEndianStructure):
    """Processor local APIC structure"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        *((name, c_uint8) for name in ("type", "length", "processor_uid", "apic_id")),
        ("flags", c_uint32),
    )


class MadtIoApic(LittleEndianStructure):
    """I/O APIC structure"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        *((name, c_uint8) for name in ("type", "length", "io_apic_id", "reserved")),
        ("address", c_uint32),
        ("interrupt_base", c_uint32),
    )


class VirtioWindow(NamedTuple):
    """One virtio-mmio device. address: of its registers. interrupt: its pin of the I/O APIC."""

    address: int
    interrupt: int


def tables(
    vcpus: int,
    windows: Sequence[VirtioWindow],
    slots: Sequence[VirtioWindow] = (),
    base: int = layout.ACPI_TABLES,
) -> bytes:
    """Return all tables, RSDP first, to be put at `base`. slots: windows of devices that may come later.

    Raises:
        ValueError: there are too many devices for the room that the tables have.
    """
    content = bytearray(sizeof(Rsdp))

    def place(table: bytes) -> int:
        content.extend(bytes(-len(content) % 16))
        address = base + len(content)
        content.extend(table)
        return address

    dsdt = place(_table(b"DSDT", 2, definition(windows, slots)))
    pointed = [place(_table(b"FACP", 6, bytes(_fadt(dsdt)))), place(_table(b"APIC", 5, _madt(vcpus)))]
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(pointed)}Q", *pointed)))
    content[: sizeof(Rsdp)] = _rsdp(xsdt)
    if base + len(content) > layout.ACPI_TABLES_END:
        raise ValueError(f"the ACPI tables of {len(windows) + len(slots)} devices take {len(content)} bytes")
    return bytes(content)


def definition(windows: Sequence[VirtioWindow], slots: Sequence[VirtioWindow] = ()) -> bytes:
    """The AML of the DSDT."""
    serial = aml.device(
        "COM1",
        aml.named("_HID", aml.eisa_id("PNP0501")),
        aml.named("_UID", aml.integer(0)),
        aml.named("_CRS", aml.resources(aml.ports(layout.COM1, 8), aml.interrupt(layout.COM1_IRQ))),
    )
    virtio = [_virtio(number, window) for number, window in enumerate(windows)]
    off = aml.package(*map(aml.integer, (SLEEP_TYPE_OFF, 0, 0, 0)))
    later = _slots(slots, len(windows)) if slots else ()
    return aml.scope("\\_SB", serial, *virtio, *later) + aml.named("\\_S5", off)


def _virtio(number: int, window: VirtioWindow, *members: bytes) -> bytes:
    return aml.device(
        f"V{number:03X}",
        aml.named("_HID", aml.string("LNRO0005")),
        aml.named("_UID", aml.integer(number)),
        aml.named("_CCA", aml.integer(1)),
        aml.named(
            "_CRS",
            aml.resources(aml.memory(window.address, layout.VIRTIO_WINDOW), aml.interrupt(window.interrupt)),
        ),
        *members,
    )


def _slots(windows: Sequence[VirtioWindow], first: int) -> tuple[bytes, bytes]:
    """The module with the devices that may come later, and the device of its event."""
    states = [f"ST{number:02X}" for number in range(len(windows))]
    devices = [
        _virtio(first + number, window, aml.method("_STA", 0, aml.returned(state)))
        for number, (window, state) in enumerate(zip(windows, states, strict=True))
    ]
    module = aml.device(
        "SLTS",
        aml.named("_HID", aml.string("ACPI0004")),
        aml.named("_UID", aml.integer(0)),
        aml.port_fields("PORT", layout.SLOTS, states),
        *devices,
    )
    event = aml.device(
        "EVTS",
        aml.named("_HID", aml.string("ACPI0013")),
        aml.named("_UID", aml.integer(0)),
        aml.named("_CRS", aml.resources(aml.interrupt(layout.SLOTS_IRQ))),
        aml.method("_EVT", 1, aml.notify("SLTS", BUS_CHECK)),
    )
    return module, event


def _register(port: int) -> GenericAddress:
    return GenericAddress(space_id=aml.SYSTEM_IO, bit_width=8, access_width=1, address=port)


def _fadt(dsdt: int) -> Fadt:
    flags = WBINVD | RESET_REGISTER | HARDWARE_REDUCED | POWER_BUTTON_AS_DEVICE | SLEEP_BUTTON_AS_DEVICE
    return Fadt(
        iapc_boot_arch=LEGACY_DEVICES | NO_VGA,
        flags=flags,
        reset_reg=_register(layout.KEYBOARD_COMMAND),
        reset_value=RESET_VALUE,
        minor_version=4,
        x_dsdt=dsdt,
        sleep_control_reg=_register(layout.SLEEP_CONTROL),
        sleep_status_reg=_register(layout.SLEEP_STATUS),
    )


def _madt(vcpus: int) -> bytes:
    processors = [
        MadtLocalApic(LOCAL_APIC_ENTRY, sizeof(MadtLocalApic), number, number, PROCESSOR_ENABLED)
        for number in range(vcpus)
    ]
    io_apic = MadtIoApic(IO_APIC_ENTRY, sizeof(MadtIoApic), 0, 0, layout.IO_APIC, 0)
    head = struct.pack("<II", layout.LOCAL_APIC, 0)
    return head + b"".join(bytes(entry) for entry in [*processors, io_apic])


def _table(signature: bytes, revision: int, content: bytes) -> bytes:
    header = TableHeader(
        signature=signature,
        length=sizeof(TableHeader) + len(content),
        revision=revision,
        oem_id=OEM,
        oem_table_id=OEM_TABLE,
        oem_revision=1,
        creator_id=CREATOR,
        creator_revision=1,
    )
    header.checksum = _checksum(bytes(header) + content)
    return bytes(header) + content


def _rsdp(xsdt: int) -> bytes:
    pointer = Rsdp(signature=b"RSD PTR ", oem_id=OEM, revision=2, length=sizeof(Rsdp), xsdt_address=xsdt)
    pointer.checksum = _checksum(bytes(pointer)[:20])
    pointer.extended_checksum = _checksum(bytes(pointer))
    return bytes(pointer)


def _checksum(data: bytes) -> int:
    """The byte that makes the sum of all of them zero."""
    return -sum(data) & 0xFF
