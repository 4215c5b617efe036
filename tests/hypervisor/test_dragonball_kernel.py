"""Kernel files, whole and damaged, and what is put into memory for them."""

from __future__ import annotations

import struct
from ctypes import sizeof
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.dragonball import boot, layout
from kata_hypervisor.dragonball.kernel import Entry, KernelImage, SetupHeader, parse_kernel
from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.elf import Elf64Header, Elf64Program
from kata_hypervisor.errors import LaunchError

MEMORY = 32 << 20


def bzimage(code: bytes = b"\x90" * 0x300, **fields: int) -> bytes:
    """A bzImage with one sector of set-up code."""
    setup = {
        "setup_sects": 1,
        "boot_flag": 0xAA55,
        "header": 0x53726448,
        "version": 0x20F,
        "xloadflags": 1,
        "pref_address": 0x1000000,
        "init_size": 0x2000,
        "initrd_addr_max": 0x7FFFFFFF,
        **fields,
    }
    return (bytes(0x1F1) + bytes(SetupHeader(**setup))).ljust(1024, b"\0") + code


def elf(segments: list[tuple[int, bytes]], entry: int, note: bytes = b"") -> bytes:
    """An ELF file with some segments and notes."""
    programs, content = [], b""
    count = len(segments) + bool(note)
    start = sizeof(Elf64Header) + count * sizeof(Elf64Program)
    for kind, address, data in [*((1, *one) for one in segments), *([(4, 0, note)] if note else [])]:
        program = Elf64Program(p_type=kind, p_paddr=address, p_offset=start + len(content))
        program.p_filesz, program.p_memsz = len(data), len(data) + 16
        programs.append(bytes(program))
        content += data
    header = Elf64Header(e_machine=62, e_entry=entry, e_phoff=sizeof(Elf64Header))
    header.e_ident[:6] = b"\x7fELF\x02\x01"
    header.e_phentsize, header.e_phnum = sizeof(Elf64Program), count
    return bytes(header) + b"".join(programs) + content


def note(kind: int, owner: bytes, content: bytes) -> bytes:
    """An ELF note, its parts padded to 32-bit words."""
    head = struct.pack("<3I", len(owner), len(content), kind)
    return (
        head + owner.ljust(-(-len(owner) // 4) * 4, b"\0") + content.ljust(-(-len(content) // 4) * 4, b"\0")
    )


def test_a_bzimage_is_entered_in_64_bits() -> None:
    image = parse_kernel(bzimage())
    (segment,) = image.segments
    assert (image.entry, image.address) == (Entry.LINUX, 0x1000200)
    assert (segment.address, segment.offset, segment.length, segment.room) == (0x1000000, 1024, 0x300, 0x2000)


def test_an_elf_kernel_without_a_note_is_entered_in_64_bits() -> None:
    image = parse_kernel(elf([(0x100000, b"code"), (0x200000, b"data")], 0x100001))
    assert (image.entry, image.address) == (Entry.LINUX, 0x100001)
    assert [(one.address, one.length, one.room) for one in image.segments] == [
        (0x100000, 4, 20),
        (0x200000, 4, 20),
    ]


def test_an_elf_kernel_with_the_note_is_entered_by_pvh() -> None:
    notes = note(1, b"GNU\0", b"1234567") + note(18, b"Xen\0", struct.pack("<I", 0x100002))
    image = parse_kernel(elf([(0x100000, b"code")], 0x100001, notes))
    assert (image.entry, image.address) == (Entry.PVH, 0x100002)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "too short"),
        (b"#!/bin/sh" * 200, "neither an ELF file nor a bzImage"),
        (bzimage(version=0x20B), r"without the 64-bit entry \(boot protocol 2\.11"),
        (bzimage(xloadflags=0), "without the 64-bit entry"),
        (bzimage(code=b""), "ends before its code"),
        (bzimage(setup_sects=200), "ends before its code"),
        (bzimage(pref_address=0x1000), "is below 1 MiB"),
        (b"\x7fELF", "it ends within its ELF header"),
        (elf([(0x100000, b"x")], 0x100000)[:100], "ends within its program headers"),
        (elf([], 0), "0 program headers"),
        (elf([(0x100000, b"code")], 0x100000)[:-1], "longer than the file"),
        (elf([(0x100000, b"code")], 0x100000, b"note")[:-1], "it ends within its notes"),
        (b"\x7fELF\x01\x01" + bytes(60), "it is an ELF file for ELF machine 0, 32 bits; supported: x86_64"),
        (elf([(0x1000, b"code")], 0x1000), "is below 1 MiB"),
        (elf([(0x100000, b"code")], 0x100004), "in none of its segments"),
        (elf([(0x100000, b"code")], 0x100000, note(18, b"Xen\0", bytes(4))), "in none of its segments"),
        (elf([], 0, b"note"), "without a segment"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(file: bytes, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        parse_kernel(file)


def check(image: KernelImage, size: int) -> None:
    """What holds for every kernel that is accepted."""
    assert image.segments
    for segment in image.segments:
        assert segment.address >= layout.HIGH_MEMORY
        assert segment.offset >= 0
        assert segment.offset + segment.length <= size
        assert segment.length <= segment.room


@given(
    st.sampled_from([bzimage(), elf([(0x100000, b"code" * 9)], 0x100000, note(18, b"Xen\0", bytes(8)))]),
    st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), max_size=6),
    st.integers(0, 2000),
)
def test_whatever_is_in_a_file(file: bytes, changes: list[tuple[int, bytes]], cut: int) -> None:
    damaged = bytearray(file)
    for at, data in changes:
        damaged[at : at + len(data)] = data
    content = bytes(damaged[: len(damaged) - cut] if cut < len(damaged) else damaged)
    try:
        image = parse_kernel(content)
    except LaunchError:
        return
    check(image, len(content))


@given(st.binary(max_size=400))
def test_whatever_comes_behind_the_mark_of_an_elf_file(rest: bytes) -> None:
    try:
        image = parse_kernel(b"\x7fELF\x02\x01" + rest)
    except LaunchError:
        return
    check(image, len(rest) + 6)


@pytest.fixture
def memory() -> GuestMemory:
    """A guest of 32 MiB."""
    return GuestMemory.over(bytearray(MEMORY))


def test_the_zero_page_points_to_everything(tmp_path: Path, memory: GuestMemory) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(bzimage(code=b"K" * 0x300))
    initrd.write_bytes(b"I" * 5000)
    image = boot.load(memory, kernel, initrd, "console=ttyS0")
    assert memory.read(image.address - 0x200, 0x300) == b"K" * 0x300
    params = boot.BootParams.from_buffer_copy(memory.read(layout.BOOT_PARAMS, 4096))
    assert memory.read(params.hdr.cmd_line_ptr, params.hdr.cmdline_size + 1) == b"console=ttyS0\0"
    assert memory.read(params.hdr.ramdisk_image, params.hdr.ramdisk_size) == b"I" * 5000
    assert params.hdr.ramdisk_image % 4096 == 0
    assert (params.hdr.type_of_loader, params.acpi_rsdp_addr) == (0xFF, layout.ACPI_TABLES)
    table = [(one.addr, one.size, one.type) for one in params.e820_table[: params.e820_entries]]
    assert table == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x100000, MEMORY - 0x100000, 1)]


def test_the_page_tables_map_the_first_gib_to_itself(memory: GuestMemory) -> None:
    boot.write_page_tables(memory)
    for address in (0, 0x1234567, (1 << 30) - 1):
        table = layout.PML4
        for shift in (39, 30, 21):
            at = table + 8 * (address >> shift & 511)
            (entry,) = struct.unpack("<Q", memory.read(at, 8))
            assert entry & 3 == 3
            table = entry & ~0xFFF
        assert entry & 0x80
        assert table + (address & 0x1FFFFF) == address


def test_start_info_points_to_everything(tmp_path: Path, memory: GuestMemory) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(elf([(0x100000, b"code")], 0, note(18, b"Xen\0", struct.pack("<Q", 0x100000))))
    initrd.write_bytes(b"I" * 100)
    boot.load(memory, kernel, initrd, "quiet")
    info = boot.HvmStartInfo.from_buffer_copy(memory.read(layout.START_INFO, 56))
    assert (info.magic, info.version, info.nr_modules) == (0x336EC578, 1, 1)
    assert memory.read(info.cmdline_paddr, 6) == b"quiet\0"
    module = boot.HvmModlistEntry.from_buffer_copy(memory.read(info.modlist_paddr, 32))
    assert memory.read(module.paddr, module.size) == b"I" * 100
    assert info.memmap_entries == 3
    assert info.rsdp_paddr == layout.ACPI_TABLES


def test_what_does_not_fit_says_so(tmp_path: Path, memory: GuestMemory) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(bzimage(init_size=MEMORY))
    with pytest.raises(LaunchError, match=r"kernel: it needs 48 MiB of memory, the guest has 32; raise"):
        boot.load(memory, kernel, None, "")
    kernel.write_bytes(bzimage(pref_address=0x1000000, init_size=(16 << 20) - 4096))
    initrd.write_bytes(b"I" * 5000)
    with pytest.raises(LaunchError, match="do not fit behind the kernel; raise default_memory"):
        boot.load(memory, kernel, initrd, "")
    with pytest.raises(LaunchError, match="command line has 2048 bytes, the kernel reads 2047"):
        boot.load(memory, kernel, None, "x" * 2048)
    kernel.write_bytes(b"")
    with pytest.raises(LaunchError, match=r"cannot load the guest's kernel .*kernel: "):
        boot.load(memory, kernel, None, "")
