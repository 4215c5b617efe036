"""ELF files: the header, the tables that it names, and notes. All that reads such files here uses this.

A file is hostile: what it says of offsets, sizes and counts is checked before anything is read by it. Nothing
is loaded, and whether a file is of use is for the caller to decide. Little-endian files of 32 and of 64 bits.
Sources: elf(5), linux/elf.h; for notes the ELF specification, 2-4, and for Xen's public/elfnote.h.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from ctypes import LittleEndianStructure, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from typing import NamedTuple, TypeVar

Read = Callable[[int, int], bytes]
"""Reads from an offset up to a number of bytes of the file; fewer where the file ends."""

MAGIC = b"\x7fELF"
CLASS_32, CLASS_64, LITTLE_ENDIAN, CURRENT_VERSION = 1, 2, 1, 1
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
MACHINES = {EM_386: "i386", 21: "ppc64", 40: "arm", EM_X86_64: "x86_64", EM_AARCH64: "aarch64", 243: "riscv"}
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_X, PF_W = 1, 2
SHT_DYNAMIC = 6

MAX_PROGRAM_HEADERS = 128
MAX_NOTES = 1 << 20
MAX_SECTION = 1 << 26

XEN_PVH_ENTRY = (b"Xen\0", 18)
"""Owner and type of the note XEN_ELFNOTE_PHYS32_ENTRY: the address of a kernel's PVH entry."""


class ElfError(ValueError):
    """The file is no ELF file that can be read, or damaged. The message continues "it"."""


class Elf64Header(LittleEndianStructure):
    """Elf64_Ehdr of linux/elf.h"""

    _fields_ = (
        ("e_ident", c_uint8 * 16),
        ("e_type", c_uint16),
        ("e_machine", c_uint16),
        ("e_version", c_uint32),
        *((name, c_uint64) for name in ("e_entry", "e_phoff", "e_shoff")),
        ("e_flags", c_uint32),
        *((name, c_uint16) for name in ("e_ehsize", "e_phentsize", "e_phnum")),
        *((name, c_uint16) for name in ("e_shentsize", "e_shnum", "e_shstrndx")),
    )


class Elf32Header(LittleEndianStructure):
    """Elf32_Ehdr of linux/elf.h"""

    _fields_ = (
        ("e_ident", c_uint8 * 16),
        ("e_type", c_uint16),
        ("e_machine", c_uint16),
        *((name, c_uint32) for name in ("e_version", "e_entry", "e_phoff", "e_shoff", "e_flags")),
        *((name, c_uint16) for name in ("e_ehsize", "e_phentsize", "e_phnum")),
        *((name, c_uint16) for name in ("e_shentsize", "e_shnum", "e_shstrndx")),
    )


class Elf64Program(LittleEndianStructure):
    """Elf64_Phdr of linux/elf.h"""

    _fields_ = (
        *((name, c_uint32) for name in ("p_type", "p_flags")),
        *((name, c_uint64) for name in ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_align")),
    )


class Elf32Program(LittleEndianStructure):
    """Elf32_Phdr of linux/elf.h"""

    _fields_ = (
        *((name, c_uint32) for name in ("p_type", "p_offset", "p_vaddr", "p_paddr")),
        *((name, c_uint32) for name in ("p_filesz", "p_memsz", "p_flags", "p_align")),
    )


class Elf64Section(LittleEndianStructure):
    """Elf64_Shdr of linux/elf.h"""

    _fields_ = (
        *((name, c_uint32) for name in ("sh_name", "sh_type")),
        *((name, c_uint64) for name in ("sh_flags", "sh_addr", "sh_offset", "sh_size")),
        *((name, c_uint32) for name in ("sh_link", "sh_info")),
        *((name, c_uint64) for name in ("sh_addralign", "sh_entsize")),
    )


class Elf32Section(LittleEndianStructure):
    """Elf32_Shdr of linux/elf.h"""

    _fields_ = (
        *((name, c_uint32) for name in ("sh_name", "sh_type", "sh_flags", "sh_addr", "sh_offset")),
        *((name, c_uint32) for name in ("sh_size", "sh_link", "sh_info", "sh_addralign", "sh_entsize")),
    )


class ElfNoteHeader(LittleEndianStructure):
    """Elf64_Nhdr of linux/elf.h; Elf32_Nhdr is the same"""

    _fields_ = tuple((name, c_uint32) for name in ("n_namesz", "n_descsz", "n_type"))


Header = Elf32Header | Elf64Header
Program = Elf32Program | Elf64Program
Section = Elf32Section | Elf64Section

Entry = TypeVar("Entry", bound=LittleEndianStructure)


class _Layout(NamedTuple):
    header: type[Header]
    program: type[Program]
    section: type[Section]


_LAYOUTS = {
    CLASS_32: _Layout(Elf32Header, Elf32Program, Elf32Section),
    CLASS_64: _Layout(Elf64Header, Elf64Program, Elf64Section),
}


class Note(NamedTuple):
    """One note. size: of its content as its header says; the content is shorter where it is cut off."""

    owner: bytes
    kind: int
    size: int
    content: bytes


class ElfFile:
    """A file with a header that can be read. bits: 32 or 64.

    Raises:
        ElfError: it has none.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        identity = read(0, 16)
        if identity[:4] != MAGIC:
            raise ElfError(f"is not an ELF file: it begins with {identity[:4]!r}")
        layout = _LAYOUTS.get(identity[4]) if len(identity) == 16 and identity[5] == LITTLE_ENDIAN else None
        if len(identity) == 16 and layout is None:
            raise ElfError("is not a little-endian ELF file of 32 or 64 bits")
        raw = read(0, sizeof(layout.header)) if layout is not None else b""
        if layout is None or len(raw) < sizeof(layout.header):
            raise ElfError("ends within its ELF header")
        self._layout = layout
        self.header = layout.header.from_buffer_copy(raw)
        self.bits = 64 if layout.header is Elf64Header else 32

    @property
    def machine(self) -> str:
        """Which processor it is for: "x86_64", or a number where this module has no name for it."""
        return MACHINES.get(self.header.e_machine, f"ELF machine {self.header.e_machine}")

    def programs(self) -> list[Program]:
        """The program headers, one at least. Raises ElfError."""
        header, kind = self.header, self._layout.program
        if header.e_phentsize != sizeof(kind) or not 1 <= header.e_phnum <= MAX_PROGRAM_HEADERS:
            raise ElfError(
                f"has {header.e_phnum} program headers of {header.e_phentsize} bytes; "
                f"supported: 1 to {MAX_PROGRAM_HEADERS} of {sizeof(kind)} bytes"
            )
        return self._table(kind, header.e_phoff, header.e_phnum, "program headers")

    def sections(self) -> list[Section]:
        """The section headers; none where it has none. Raises ElfError."""
        header, kind = self.header, self._layout.section
        if header.e_shnum and header.e_shentsize != sizeof(kind):
            raise ElfError(f"has section headers of {header.e_shentsize} bytes; supported: {sizeof(kind)}")
        return self._table(kind, header.e_shoff, header.e_shnum, "section headers")

    def _table(self, kind: type[Entry], offset: int, count: int, name: str) -> list[Entry]:
        size = sizeof(kind)
        raw = self._read(offset, size * count)
        if len(raw) < size * count:
            raise ElfError(f"ends within its {name}")
        return [kind.from_buffer_copy(raw, at) for at in range(0, size * count, size)]

    def content(self, section: Section) -> bytes:
        """What a section holds, as far as the file goes. Raises ElfError."""
        if section.sh_size > MAX_SECTION:
            raise ElfError(f"has a section of {section.sh_size} bytes; supported: {MAX_SECTION}")
        return self._read(section.sh_offset, section.sh_size)

    def names(self, sections: Sequence[Section]) -> list[str]:
        """The sections' names. Raises ElfError."""
        if not sections:
            return []
        if self.header.e_shstrndx >= len(sections):
            raise ElfError("has no section with the names of its sections")
        table = self.content(sections[self.header.e_shstrndx])
        return [string_at(table, section.sh_name) for section in sections]

    def notes(self, program: Program) -> Iterator[Note]:
        """The notes of a program header of type PT_NOTE, up to one that is damaged. Raises ElfError."""
        if program.p_filesz > MAX_NOTES:
            raise ElfError(f"has {program.p_filesz} bytes of notes; supported: {MAX_NOTES}")
        raw = self._read(program.p_offset, program.p_filesz)
        if len(raw) < program.p_filesz:
            raise ElfError("ends within its notes")
        at = 0
        while at + sizeof(ElfNoteHeader) <= len(raw):
            header = ElfNoteHeader.from_buffer_copy(raw, at)
            owner = at + sizeof(ElfNoteHeader)
            content = owner + _padded(header.n_namesz)
            yield Note(
                raw[owner : owner + header.n_namesz],
                header.n_type,
                header.n_descsz,
                raw[content : content + header.n_descsz],
            )
            at = content + _padded(header.n_descsz)


def reader_of(descriptor: int) -> Read:
    """Reads an open file. A file of 64 bits may name an offset that no file has: there is nothing."""
    return lambda offset, size: os.pread(descriptor, size, offset) if offset < 1 << 63 else b""


def string_at(table: bytes, offset: int) -> str:
    """A string of a string table; empty behind the table's end."""
    return table[offset:].partition(b"\0")[0].decode("utf-8", "replace")


def _padded(size: int) -> int:
    return size + 3 & ~3
