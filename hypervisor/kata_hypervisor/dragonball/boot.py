"""What a kernel finds in memory when it starts: itself, its initrd, its command line, and where all that is.

Sources: Linux' Documentation/x86/boot.rst and zero-page.rst; Xen's public/arch-x86/hvm/start_info.h for PVH.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from ctypes import LittleEndianStructure, c_uint8, c_uint32, c_uint64, sizeof
from pathlib import Path

from kata_hypervisor.dragonball import layout
from kata_hypervisor.dragonball.kernel import Entry, KernelImage, SetupHeader, parse_kernel
from kata_hypervisor.dragonball.memory import GuestMemory, OutOfRangeError
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.kernel_line import check_length

E820_RAM, E820_RESERVED = 1, 2
LOADER_UNDEFINED = 0xFF
START_INFO_MAGIC = 0x336EC578
PVH_VERSION = 1

# Of a long-mode processor's first table: page present, writable, a 2 MiB page.
PRESENT, WRITABLE, HUGE = 1 << 0, 1 << 1, 1 << 7


class BootE820Entry(LittleEndianStructure):
    """struct boot_e820_entry"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("addr", c_uint64), ("size", c_uint64), ("type", c_uint32))


class BootParams(LittleEndianStructure):
    """struct boot_params, the members that a boot loader fills in"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("screen_info", c_uint8 * 0x70),
        ("acpi_rsdp_addr", c_uint64),
        ("_until_ext", c_uint8 * (0xC0 - 0x78)),
        ("ext_ramdisk_image", c_uint32),
        ("ext_ramdisk_size", c_uint32),
        ("ext_cmd_line_ptr", c_uint32),
        ("_until_e820", c_uint8 * (0x1E8 - 0xCC)),
        ("e820_entries", c_uint8),
        ("_until_hdr", c_uint8 * (0x1F1 - 0x1E9)),
        ("hdr", SetupHeader),
        ("_until_table", c_uint8 * (0x2D0 - 0x1F1 - sizeof(SetupHeader))),
        ("e820_table", BootE820Entry * 128),
        ("_rest", c_uint8 * (0x1000 - 0x2D0 - 128 * sizeof(BootE820Entry))),
    )


class HvmStartInfo(LittleEndianStructure):
    """struct hvm_start_info, version 1"""

    _fields_ = (
        *((name, c_uint32) for name in ("magic", "version", "flags", "nr_modules")),
        *((name, c_uint64) for name in ("modlist_paddr", "cmdline_paddr", "rsdp_paddr", "memmap_paddr")),
        *((name, c_uint32) for name in ("memmap_entries", "reserved")),
    )


class HvmModlistEntry(LittleEndianStructure):
    """struct hvm_modlist_entry"""

    _fields_ = tuple((name, c_uint64) for name in ("paddr", "size", "cmdline_paddr", "reserved"))


class HvmMemmapTableEntry(LittleEndianStructure):
    """struct hvm_memmap_table_entry"""

    _fields_ = (("addr", c_uint64), ("size", c_uint64), ("type", c_uint32), ("reserved", c_uint32))


def load(memory: GuestMemory, kernel: Path, initrd: Path | None, command_line: str) -> KernelImage:
    """Put everything in place, for the kernel's own way of being entered.

    Raises:
        LaunchError: a file is missing or damaged, or the guest's memory is too small for it.
    """
    image = _load_kernel(memory, kernel)
    module = _load_initrd(memory, initrd, image) if initrd is not None else (0, 0)
    line = command_line.encode()
    check_length(line)
    memory.write(layout.COMMAND_LINE, line + b"\0")
    if image.entry is Entry.PVH:
        _write_start_info(memory, module)
    else:
        memory.write(layout.BOOT_PARAMS, bytes(boot_params(memory, image, module, len(line))))
        write_page_tables(memory)
    return image


def memory_map(memory: GuestMemory) -> Iterator[tuple[int, int, int]]:
    """Yield the e820 map: start, size, type."""
    first, *others = memory.regions
    yield 0, layout.LOW_MEMORY_END, E820_RAM
    yield layout.LOW_MEMORY_END, layout.HIGH_MEMORY - layout.LOW_MEMORY_END, E820_RESERVED
    yield layout.HIGH_MEMORY, first.end - layout.HIGH_MEMORY, E820_RAM
    for region in others:
        yield region.start, region.size, E820_RAM


def boot_params(memory: GuestMemory, image: KernelImage, module: tuple[int, int], line: int) -> BootParams:
    """Fill in the zero page. module: address and size of the initrd. line: bytes of the command line."""
    params = BootParams(acpi_rsdp_addr=layout.ACPI_TABLES)
    if image.setup is not None:
        params.hdr = image.setup
    else:
        params.hdr = SetupHeader(boot_flag=0xAA55, header=0x53726448, kernel_alignment=0x1000000)
    params.hdr.type_of_loader = LOADER_UNDEFINED
    params.hdr.cmd_line_ptr, params.hdr.cmdline_size = layout.COMMAND_LINE, line
    params.hdr.ramdisk_image, params.hdr.ramdisk_size = module
    for number, entry in enumerate(memory_map(memory)):
        params.e820_table[number] = BootE820Entry(*entry)
        params.e820_entries = number + 1
    return params


def write_page_tables(memory: GuestMemory) -> None:
    """Map the first GiB one to one in 2 MiB pages."""
    flags = PRESENT | WRITABLE
    memory.write(layout.PML4, struct.pack("<Q", layout.PDPT | flags))
    memory.write(layout.PDPT, struct.pack("<Q", layout.PAGE_DIRECTORY | flags))
    pages = (number * layout.HUGE_PAGE | flags | HUGE for number in range(512))
    memory.write(layout.PAGE_DIRECTORY, struct.pack("<512Q", *pages))


def _write_start_info(memory: GuestMemory, module: tuple[int, int]) -> None:
    entries = list(memory_map(memory))
    for number, entry in enumerate(entries):
        table_entry = HvmMemmapTableEntry(*entry)
        memory.write(layout.START_INFO_MEMORY + number * sizeof(table_entry), bytes(table_entry))
    info = HvmStartInfo(
        magic=START_INFO_MAGIC,
        version=PVH_VERSION,
        cmdline_paddr=layout.COMMAND_LINE,
        rsdp_paddr=layout.ACPI_TABLES,
        memmap_paddr=layout.START_INFO_MEMORY,
        memmap_entries=len(entries),
    )
    if module[1]:
        info.nr_modules, info.modlist_paddr = 1, layout.START_INFO_MODULES
        memory.write(layout.START_INFO_MODULES, bytes(HvmModlistEntry(*module)))
    memory.write(layout.START_INFO, bytes(info))


def _load_kernel(memory: GuestMemory, path: Path) -> KernelImage:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            image = parse_kernel(content)
            for segment in image.segments:
                _check_room(memory, segment.address, segment.room)
                target = memory.view(segment.address, segment.length)
                if os.preadv(file.fileno(), [target], segment.offset) != segment.length:
                    raise LaunchError("it became shorter while it was read")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise LaunchError(f"cannot load the guest's kernel {path}: {reason}") from error
    except LaunchError as error:
        raise LaunchError(f"cannot load the guest's kernel {path}: {error}") from error
    return image


def _check_room(memory: GuestMemory, address: int, room: int) -> None:
    try:
        memory.offset(address, room)
    except OutOfRangeError:
        needed = -(-(address + room) >> 20)
        raise LaunchError(
            f"it needs {needed} MiB of memory, the guest has {memory.size >> 20}; raise default_memory"
        ) from None


def _load_initrd(memory: GuestMemory, path: Path, image: KernelImage) -> tuple[int, int]:
    """Put the initrd as high as the kernel allows; return its address and size."""
    limit = memory.regions[0].end
    if image.setup is not None:
        limit = min(limit, image.setup.initrd_addr_max + 1)
    floor = max(segment.address + segment.room for segment in image.segments)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            address = (limit - size) & -layout.PAGE
            if address < floor:
                raise LaunchError(
                    f"cannot load the guest's initrd {path}: {size >> 20} MiB do not fit behind the kernel; "
                    "raise default_memory"
                )
            if os.preadv(file.fileno(), [memory.view(address, size)], 0) != size:
                raise LaunchError(f"cannot load the guest's initrd {path}: it became shorter")
    except OSError as error:
        raise LaunchError(f"cannot load the guest's initrd {path}: {error.strerror}") from error
    return address, size
