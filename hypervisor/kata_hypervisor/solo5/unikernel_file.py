"""A Solo5 unikernel's file: which tender it is for, the devices it declares, and what is loaded where.

The file is hostile until `read_unikernel` has returned; nothing here opens or loads anything. Sources: the
ELF-64 specification, and Solo5's include/elf_abi.h and include/mft_abi.h for the notes; a segment must pass
what Solo5's own loader asks of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from ctypes import sizeof
from typing import NamedTuple

from kata_hypervisor import elf
from kata_hypervisor.elf import ElfError, ElfFile, Program, Read
from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.solo5.manifest import ENTRY, HEADER, MAX_ENTRIES, Device, parse_manifest

TARGETS: Mapping[int, str] = {1: "hvt", 2: "spt", 3: "virtio", 4: "muen", 5: "genode", 6: "xen"}
HVT, HVT_VERSION = "hvt", 2
SPT, SPT_VERSION = "spt", 2

LOWEST_ADDRESS = 0x100000
PAGE = 4096

OWNER = b"Solo5\0"
ABI_NOTE, MANIFEST_NOTE = 0x31494241, 0x3154464D  # "ABI1", "MFT1"
ABI = struct.Struct("<IIII")  # target, version, two that are reserved
# The descriptor of MFT1 is aligned to 8 bytes, which the note's header and name are not.
MANIFEST_PADDING = 4
MAX_MANIFEST = MANIFEST_PADDING + HEADER.size + MAX_ENTRIES * ENTRY.size


class Segment(NamedTuple):
    """A piece of the file in memory. address, memory_size: bytes of memory; what the file lacks is zero."""

    address: int
    memory_size: int
    offset: int
    file_size: int
    writable: bool
    executable: bool

    @property
    def end(self) -> int:
        """The first address behind it, at a page's end."""
        return -(-(self.address + self.memory_size) // PAGE) * PAGE


class Unikernel(NamedTuple):
    """A file that has been understood. target: as in TARGETS. version: of the target's ABI."""

    target: str
    version: int
    devices: tuple[Device, ...]
    entry: int
    segments: tuple[Segment, ...]

    @property
    def end(self) -> int:
        """The first address behind all segments."""
        return max(segment.end for segment in self.segments)


def read_unikernel(read: Read) -> Unikernel:
    """Understand a unikernel's file.

    Raises:
        UnikernelError: it is no Solo5 unikernel for this processor, or is damaged.
    """
    try:
        file = _open(read)
        programs = file.programs()
        notes = dict(_notes(file, programs))
    except ElfError as error:
        raise UnikernelError(f"it {error}") from error
    target, version = _abi(notes)
    if MANIFEST_NOTE not in notes:
        raise UnikernelError("it has no note MFT1 of Solo5, the manifest of its devices: link it with one")
    devices = parse_manifest(notes[MANIFEST_NOTE][MANIFEST_PADDING:])
    entry, segments = file.header.e_entry, tuple(_segments(programs))
    if not any(s.executable and s.address <= entry < s.address + s.memory_size for s in segments):
        raise UnikernelError(f"its entry {entry:#x} is in none of its executable segments")
    return Unikernel(target, version, devices, entry, segments)


def check_target(unikernel: Unikernel, target: str, version: int, runner: str) -> None:
    """See that a unikernel is for who shall run it. runner: its name, such as "solo5-hvt".

    Raises:
        UnikernelError: it is for another.
    """
    if (unikernel.target, unikernel.version) != (target, version):
        raise UnikernelError(
            f"note ABI1 says target {unikernel.target}, version {unikernel.version}; "
            f"{runner} supports target {target}, version {version}"
        )


def _open(read: Read) -> ElfFile:
    file = ElfFile(read)
    header = file.header
    if file.bits != 64 or header.e_version != elf.CURRENT_VERSION or header.e_ehsize != sizeof(header):
        raise ElfError("is not a little-endian ELF file of 64 bits")
    if header.e_machine != elf.EM_X86_64:
        raise ElfError(f"is for {file.machine}; supported: x86_64")
    if header.e_type != elf.ET_EXEC:
        raise ElfError(
            f"is not linked to fixed addresses (ELF type {header.e_type}; supported: {elf.ET_EXEC}, EXEC)"
        )
    return file


def _notes(file: ElfFile, programs: Sequence[Program]) -> Iterator[tuple[int, bytes]]:
    """Yield Solo5's notes by type; each has a program header of its own."""
    for program in programs:
        if program.p_type != elf.PT_NOTE:
            continue
        note = next(file.notes(program), None)
        if note is None or note.owner != OWNER:
            continue
        if note.size > MAX_MANIFEST or len(note.content) < note.size:
            raise ElfError(
                f"has a note of type {note.kind:#x} with {note.size} bytes, which is larger than its program "
                f"header or than {MAX_MANIFEST} bytes"
            )
        yield note.kind, note.content


def _abi(notes: Mapping[int, bytes]) -> tuple[str, int]:
    if ABI_NOTE not in notes:
        raise UnikernelError(
            "it has no note ABI1 of Solo5, so it is no Solo5 unikernel; supported: target hvt, version 2"
        )
    if len(notes[ABI_NOTE]) != ABI.size:
        raise UnikernelError(f"its note ABI1 has {len(notes[ABI_NOTE])} bytes, not {ABI.size}")
    target, version, _, _ = ABI.unpack(notes[ABI_NOTE])
    return TARGETS.get(target, f"number {target}"), version


def _segments(programs: Sequence[Program]) -> Iterator[Segment]:
    end = LOWEST_ADDRESS
    for program in programs:
        if program.p_type != elf.PT_LOAD or program.p_memsz == 0:
            continue
        flags, alignment = program.p_flags, program.p_align
        address, memory_size = program.p_vaddr, program.p_memsz
        offset, file_size = program.p_offset, program.p_filesz
        where = f"its segment at {address:#x}"
        if alignment & (alignment - 1):
            raise UnikernelError(f"{where} is aligned to {alignment} bytes, which is no power of 2")
        alignment = max(alignment, PAGE)
        if address & -alignment < end:
            raise UnikernelError(f"{where} begins below {end:#x}, the lowest address that is free for it")
        if (
            file_size > memory_size
            or address + memory_size + alignment >= 1 << 32
            or offset + file_size >= 1 << 63
        ):
            raise UnikernelError(
                f"{where} does not fit: {file_size} bytes of the file in {memory_size} of memory"
            )
        if flags & elf.PF_W and flags & elf.PF_X:
            raise UnikernelError(f"{where} is writable and executable at once, which is not allowed")
        end = -(-(address + memory_size) // alignment) * alignment
        yield Segment(address, memory_size, offset, file_size, bool(flags & elf.PF_W), bool(flags & elf.PF_X))
