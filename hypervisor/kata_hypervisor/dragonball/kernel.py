"""Kernel files: a Linux bzImage with the 64-bit entry, or an ELF kernel, with a PVH note or without.

Source: Linux' Documentation/x86/boot.rst. A kernel file is the operator's, and is parsed as a hostile one is.
"""

from __future__ import annotations

from ctypes import LittleEndianStructure, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from enum import Enum
from typing import NamedTuple, Protocol

from kata_hypervisor import elf
from kata_hypervisor.dragonball.layout import HIGH_MEMORY
from kata_hypervisor.elf import ElfError, ElfFile, Program
from kata_hypervisor.errors import LaunchError

SETUP_HEADER = 0x1F1
SETUP_MAGIC = 0x53726448  # "HdrS"
BOOT_FLAG = 0xAA55
OLDEST_PROTOCOL = 0x020C
KERNEL_64 = 1 << 0
ENTRY_64 = 0x200
SECTOR = 512
DEFAULT_SETUP_SECTORS = 4


class Readable(Protocol):
    """A file's content: bytes, or a mapping of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class SetupHeader(LittleEndianStructure):
    """struct setup_header of linux/asm/bootparam.h"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("setup_sects", c_uint8),
        ("root_flags", c_uint16),
        ("syssize", c_uint32),
        ("ram_size", c_uint16),
        ("vid_mode", c_uint16),
        ("root_dev", c_uint16),
        ("boot_flag", c_uint16),
        ("jump", c_uint16),
        ("header", c_uint32),
        ("version", c_uint16),
        ("realmode_swtch", c_uint32),
        ("start_sys_seg", c_uint16),
        ("kernel_version", c_uint16),
        ("type_of_loader", c_uint8),
        ("loadflags", c_uint8),
        ("setup_move_size", c_uint16),
        ("code32_start", c_uint32),
        ("ramdisk_image", c_uint32),
        ("ramdisk_size", c_uint32),
        ("bootsect_kludge", c_uint32),
        ("heap_end_ptr", c_uint16),
        ("ext_loader_ver", c_uint8),
        ("ext_loader_type", c_uint8),
        ("cmd_line_ptr", c_uint32),
        ("initrd_addr_max", c_uint32),
        ("kernel_alignment", c_uint32),
        ("relocatable_kernel", c_uint8),
        ("min_alignment", c_uint8),
        ("xloadflags", c_uint16),
        ("cmdline_size", c_uint32),
        ("hardware_subarch", c_uint32),
        ("hardware_subarch_data", c_uint64),
        ("payload_offset", c_uint32),
        ("payload_length", c_uint32),
        ("setup_data", c_uint64),
        ("pref_address", c_uint64),
        ("init_size", c_uint32),
        ("handover_offset", c_uint32),
        ("kernel_info_offset", c_uint32),
    )


class Entry(Enum):
    """How a kernel is entered: Linux' 64-bit protocol with boot_params, or PVH with start_info in 32 bits."""

    LINUX = "linux"
    PVH = "pvh"


class Segment(NamedTuple):
    """Bytes [offset, offset + length) of the file go to `address`, where the kernel owns `room` bytes."""

    address: int
    offset: int
    length: int
    room: int


class KernelImage(NamedTuple):
    """What a kernel file says. setup: its setup header, or None for an ELF file."""

    segments: tuple[Segment, ...]
    entry: Entry
    address: int
    setup: SetupHeader | None = None


def parse_kernel(file: Readable) -> KernelImage:
    """Understand a kernel file.

    Raises:
        LaunchError: it is neither kind, or damaged; the message names what is wrong, not the file.
    """
    return _parse_elf(file) if file[:4] == elf.MAGIC else _parse_bzimage(file)


def _parse_bzimage(file: Readable) -> KernelImage:
    end = SETUP_HEADER + sizeof(SetupHeader)
    if len(file) < end:
        raise LaunchError("it is neither an ELF file nor a bzImage: it is too short")
    setup = SetupHeader.from_buffer_copy(file[SETUP_HEADER:end])
    if setup.boot_flag != BOOT_FLAG or setup.header != SETUP_MAGIC:
        raise LaunchError("it is neither an ELF file nor a bzImage")
    if setup.version < OLDEST_PROTOCOL or not setup.xloadflags & KERNEL_64:
        version = f"{setup.version >> 8}.{setup.version & 0xFF:02}"
        raise LaunchError(
            f"it is a bzImage without the 64-bit entry (boot protocol {version}, 2.12 is needed)"
        )
    offset = ((setup.setup_sects or DEFAULT_SETUP_SECTORS) + 1) * SECTOR
    length = len(file) - offset
    if length <= ENTRY_64:
        raise LaunchError("it is a bzImage that ends before its code")
    address = setup.pref_address or HIGH_MEMORY
    segment = Segment(address, offset, length, max(length, setup.init_size))
    _check_address(segment)
    return KernelImage((segment,), Entry.LINUX, address + ENTRY_64, setup)


def _parse_elf(file: Readable) -> KernelImage:
    try:
        return _read_elf(file, ElfFile(lambda offset, size: file[offset : offset + size]))
    except ElfError as error:
        raise LaunchError(f"it {error}") from error


def _read_elf(file: Readable, content: ElfFile) -> KernelImage:
    if content.bits != 64 or content.header.e_machine != elf.EM_X86_64:
        raise LaunchError(f"it is an ELF file for {content.machine}, {content.bits} bits; supported: x86_64")
    segments: list[Segment] = []
    pvh = None
    for program in content.programs():
        if program.p_type == elf.PT_LOAD and program.p_memsz:
            segments.append(_load_segment(file, program))
        elif program.p_type == elf.PT_NOTE and pvh is None:
            pvh = _pvh_entry(content, program)
    if not segments:
        raise LaunchError("it is an ELF file without a segment to load")
    address = content.header.e_entry if pvh is None else pvh
    if not any(one.address <= address < one.address + one.length for one in segments):
        raise LaunchError(f"it is an ELF file whose entry {address:#x} is in none of its segments")
    return KernelImage(tuple(segments), Entry.LINUX if pvh is None else Entry.PVH, address)


def _load_segment(file: Readable, program: Program) -> Segment:
    segment = Segment(program.p_paddr, program.p_offset, program.p_filesz, program.p_memsz)
    if segment.length > segment.room or segment.offset + segment.length > len(file):
        raise LaunchError("it is an ELF file with a segment that is longer than the file or its room")
    _check_address(segment)
    return segment


def _check_address(segment: Segment) -> None:
    if segment.address < HIGH_MEMORY:
        raise LaunchError(
            f"its segment at {segment.address:#x} is below 1 MiB, where the machine's own tables are"
        )


def _pvh_entry(content: ElfFile, program: Program) -> int | None:
    """Search the notes for the address of the PVH entry."""
    for note in content.notes(program):
        if (note.owner, note.kind) == elf.XEN_PVH_ENTRY and len(note.content) == note.size in (4, 8):
            return int.from_bytes(note.content, "little")
    return None
