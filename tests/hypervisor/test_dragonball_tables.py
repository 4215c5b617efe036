"""What describes its machine to the guest: ACPI tables, CPUID, and where its memory is."""

from __future__ import annotations

import struct

import pytest

from kata_hypervisor.dragonball import acpi, aml, cpuid, layout
from kata_hypervisor.dragonball.acpi import VirtioWindow
from kata_hypervisor.dragonball.boot import memory_map
from kata_hypervisor.dragonball.memory import GuestMemory, OutOfRangeError, regions_of
from kata_hypervisor.kvm.abi import KvmCpuid2, KvmCpuidEntry2

BASE = layout.ACPI_TABLES
WINDOWS = [VirtioWindow(0xC0000000, 16), VirtioWindow(0xC0001000, 17)]


def table_at(content: bytes, address: int) -> bytes:
    """A table by its address, its checksum checked."""
    start = address - BASE
    (length,) = struct.unpack_from("<I", content, start + 4)
    table = content[start : start + length]
    assert sum(table) & 0xFF == 0
    return table


def test_the_tables_are_found_from_the_first() -> None:
    content = acpi.tables(3, WINDOWS)
    assert content[:8] == b"RSD PTR "
    assert sum(content[:20]) & 0xFF == sum(content[:36]) & 0xFF == 0
    (xsdt,) = struct.unpack_from("<Q", content, 24)
    pointers = struct.unpack("<2Q", table_at(content, xsdt)[36:])
    tables = {table_at(content, address)[:4]: table_at(content, address) for address in pointers}
    fadt, madt = tables[b"FACP"], tables[b"APIC"]
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags & 1 << 20
    assert table_at(content, struct.unpack_from("<Q", fadt, 140)[0])[:4] == b"DSDT"
    assert (fadt[244], struct.unpack_from("<Q", fadt, 248)[0]) == (1, 0x600)
    assert (fadt[128], struct.unpack_from("<Q", fadt, 120)[0]) == (0xFE, 0x64)
    assert struct.unpack_from("<I", madt, 36) == (0xFEE00000,)
    entries = [(0, 8, number, number, 1) for number in range(3)]
    assert [struct.unpack_from("<BBBBI", madt, 44 + 8 * number) for number in range(3)] == entries
    assert struct.unpack_from("<BBBBII", madt, 68) == (1, 12, 0, 0, 0xFEC00000, 0)


def test_each_device_is_in_the_namespace() -> None:
    definition = acpi.definition(WINDOWS)
    assert definition.count(b"LNRO0005\0") == 2
    for window in WINDOWS:
        assert struct.pack("<BHBII", 0x86, 9, 1, window.address, 0x1000) in definition
        assert struct.pack("<BHBBI", 0x89, 6, 3, 1, window.interrupt) in definition


def test_devices_that_come_later_have_a_state_and_an_event() -> None:
    definition = acpi.definition(WINDOWS[:1], WINDOWS[1:])
    assert definition.count(b"LNRO0005\0") == 2
    region = b"\x5b\x80PORT\x01\x0b" + struct.pack("<H", layout.SLOTS) + b"\x01"
    field = b"\x5b\x81\x0bPORT\x01ST00\x08"
    state = b"\x14\x0b_STA\x00\xa4ST00"
    event = b"\x14\x0c_EVT\x01\x86SLTS\x00"
    line = struct.pack("<BHBBI", 0x89, 6, 3, 1, layout.SLOTS_IRQ)
    for part in (b"ACPI0004\0", region + field, state, b"ACPI0013\0", event, line):
        assert definition.count(part) == 1
    assert b"ACPI" not in acpi.definition(WINDOWS)
    assert layout.SLOTS_IRQ not in layout.VIRTIO_INTERRUPTS


def test_as_many_devices_as_there_are_pins_have_room() -> None:
    windows = [
        VirtioWindow(layout.VIRTIO + number * layout.VIRTIO_WINDOW, pin)
        for number, pin in enumerate(layout.VIRTIO_INTERRUPTS)
    ]
    assert BASE + len(acpi.tables(32, windows)) < layout.ACPI_TABLES_END
    assert BASE + len(acpi.tables(32, windows[:1], windows[1:])) < layout.ACPI_TABLES_END
    with pytest.raises(ValueError, match="2000 devices take"):
        acpi.tables(1, WINDOWS * 1000)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (2, b"\x0a\x02"),
        (0x100, b"\x0b\x00\x01"),
        (0x10000, b"\x0c\x00\x00\x01\x00"),
        (1 << 32, b"\x0e\x00\x00\x00\x00\x01\x00\x00\x00"),
    ],
)
def test_an_integer_is_as_short_as_can_be(value: int, encoded: bytes) -> None:
    assert aml.integer(value) == encoded


def test_names_and_ids() -> None:
    assert aml.path("\\_SB") == b"\\_SB_"
    assert aml.path("V0") == b"V0__"
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"
    assert aml.string("AB") == b"\x0dAB\0"


@pytest.mark.parametrize("size", [10, 62, 63, 64, 4000, 4093, 4095, 70_000])
def test_a_package_counts_itself(size: int) -> None:
    encoded = aml.scope("\\_SB", b"x" * (size - 5))[1:]
    more = encoded[0] >> 6
    length = encoded[0] & (0x3F if not more else 0xF)
    length |= int.from_bytes(encoded[1 : 1 + more], "little") << 4
    assert length == len(encoded) == size + 1 + more


def leaf(function: int, index: int = 0, **registers: int) -> KvmCpuidEntry2:
    """One entry of a CPUID table."""
    return KvmCpuidEntry2(function=function, index=index, **registers)


def host(vendor: bytes, *entries: KvmCpuidEntry2) -> KvmCpuid2:
    """A host's table."""
    ebx, edx, ecx = (int.from_bytes(vendor[at : at + 4], "little") for at in (0, 4, 8))
    table = KvmCpuid2()
    for entry in (leaf(0, ebx=ebx, ecx=ecx, edx=edx), *entries):
        table.entries[table.nent] = entry
        table.nent += 1
    return table


def entry_of(table: KvmCpuid2, function: int, index: int = 0) -> KvmCpuidEntry2:
    """An entry by its number."""
    entries: list[KvmCpuidEntry2] = table.entries[: table.nent]
    return next(one for one in entries if (one.function, one.index) == (function, index))


def test_every_processor_is_a_core_of_its_own() -> None:
    supported = host(cpuid.INTEL, leaf(1, ebx=0x07FF0000), leaf(0xB, ebx=99), leaf(0x1F, ebx=99))
    table = cpuid.normalize(supported, 2, 3)
    features = entry_of(table, 1)
    assert features.ebx == 2 << 24 | 4 << 16 | 8 << 8
    assert features.ecx & (1 << 24 | 1 << 31) == 1 << 24 | 1 << 31
    assert features.edx >> 28 & 1
    assert [(one.eax, one.ebx, one.ecx, one.edx) for one in (entry_of(table, 0xB, i) for i in range(3))] == [
        (0, 1, 0x100, 2),
        (2, 3, 0x201, 2),
        (0, 0, 2, 2),
    ]
    assert 0x1F not in [one.function for one in table.entries[: table.nent]]
    assert supported.entries[1].ebx == 0x07FF0000


def test_what_intel_is_told() -> None:
    supported = host(
        cpuid.INTEL,
        leaf(4, 0, eax=0xFC004121, ebx=7),
        leaf(4, 3, eax=0xFC1FC163),
        leaf(6, eax=0xFFFF, ecx=0xF),
        leaf(7, ecx=0xFF, edx=1 << 29),
        leaf(0xA, eax=7, ebx=7, ecx=7, edx=7),
    )
    table = cpuid.normalize(supported, 0, 4)
    assert entry_of(table, 4, 0).eax >> 14 == 3 << 12
    assert entry_of(table, 4, 3).eax >> 14 == 3 << 12 | 3
    assert (entry_of(table, 6).eax, entry_of(table, 6).ecx) == (0xFFFD, 7)
    assert (entry_of(table, 7).ecx, entry_of(table, 7).edx) == (0xDF, 1 << 29)
    counters = entry_of(table, 0xA)
    assert (counters.eax, counters.ebx, counters.ecx, counters.edx) == (0, 0, 0, 0)


def test_what_amd_is_told() -> None:
    supported = host(
        cpuid.AMD,
        leaf(7, ecx=0x20, edx=1 << 29),
        leaf(0x80000001),
        leaf(0x80000008, ecx=0xFFFF),
        leaf(0x8000001E, eax=77, ebx=0xFFFF, ecx=0xFFFF),
    )
    table = cpuid.normalize(supported, 1, 2)
    assert (entry_of(table, 7).ecx, entry_of(table, 7).edx) == (0x20, 0)
    assert entry_of(table, 0x80000001).ecx == 1 << 22
    assert entry_of(table, 0x80000008).ecx & 0xF0FF == 0x1001
    identity = entry_of(table, 0x8000001E)
    assert (identity.eax, identity.ebx & 0xFFFF, identity.ecx & 0x7FF) == (1, 1, 0)


@pytest.mark.parametrize("vendor", [cpuid.INTEL, cpuid.AMD, b"CentaurHauls"])
def test_no_guest_is_shown_virtualization(vendor: bytes) -> None:
    everything = {"ecx": 0xFFFFFFFF}
    table = cpuid.normalize(host(vendor, leaf(1, **everything), leaf(0x80000001, **everything)), 0, 1)
    assert not entry_of(table, 1).ecx & 1 << 5
    assert not entry_of(table, 0x80000001).ecx & 1 << 2


def test_an_unknown_vendor_gets_the_common_changes() -> None:
    table = cpuid.normalize(host(b"CentaurHauls", leaf(1), leaf(0xA, eax=7)), 0, 1)
    assert entry_of(table, 1).ecx >> 31 == 1
    assert entry_of(table, 0xA).eax == 7


def test_memory_leaves_the_gap_to_devices() -> None:
    gib = 1 << 30
    assert [(one.start, one.size, one.offset) for one in regions_of(5 * gib)] == [
        (0, 3 * gib, 0),
        (4 * gib, 2 * gib, 3 * gib),
    ]
    memory = GuestMemory(memoryview(b""))
    memory.regions = regions_of(5 * gib)
    assert list(memory_map(memory))[2:] == [(1 << 20, 3 * gib - (1 << 20), 1), (4 * gib, 2 * gib, 1)]
    assert memory.offset(5 * gib, 16) == 4 * gib
    for address, length in ((3 * gib - 1, 2), (3 * gib, 1), (4 * gib - 1, 1), (6 * gib - 1, 2), (-1, 1)):
        with pytest.raises(OutOfRangeError, match="no guest memory at"):
            memory.offset(address, length)


def test_real_memory_is_aligned_and_can_be_given_back() -> None:
    memory = GuestMemory.allocate(4 << 20)
    try:
        assert memory.address % (2 << 20) == 0
        memory.write(0x1000, b"x" * 0x3000)
        memory.discard(memory.view(0x1800, 0x2000))
        assert memory.read(0x1FFF, 1) == b"x"
        assert memory.read(0x2000, 0x1000) == bytes(0x1000)
        assert memory.read(0x3000, 0x1000) == b"x" * 0x1000
    finally:
        memory.close()
    memory.close()
