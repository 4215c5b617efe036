"""A Solo5 unikernel's file: which tender it is for, the devices it declares, and what is loaded where.

The file is hostile until `read_unikernel` has returned; nothing here opens or loads anything. Sources: the
ELF-64 specification, and Solo5's include/elf_abi.h and include/mft_abi.h for the notes; a segment must pass
what Solo5's own loader asks of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.solo5.manifest import ENTRY, HEADER, MAX_ENTRIES, Device, parse_manifest

Read = Callable[[int, int], bytes]
"""Reads from an offset up to a number of bytes of the file; fewer where the file ends."""

TARGETS: Mapping[int, str] = {1: "hvt", 2: "spt", 3: "virtio", 4: "muen", 5: "genode", 6: "xen"}
HVT, HVT_VERSION = "hvt", 2
SPT, SPT_VERSION = "spt", 2

LOWEST_ADDRESS = 0x100000
PAGE = 4096

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
NOTE_HEADER = struct.Struct("<III")
MAGIC, CLASS_64, LITTLE_ENDIAN, CURRENT = b"\x7fELF", 2, 1, 1
EXECUTABLE, X86_64 = 2, 62
MACHINES = {3: "i386", 21: "ppc64", 40: "arm", 183: "aarch64", 243: "riscv"}
LOAD, NOTE = 1, 4
EXECUTE, WRITE = 1, 2
MAX_PROGRAM_HEADERS = 64

OWNER = b"Solo5\0"
ABI_NOTE, MANIFEST_NOTE = 0x31494241, 0x3154464D  # "ABI1", "MFT1"
ABI = struct.Struct("<IIII")  # target, version, two that are reserved
# The descriptor of MFT1 is aligned to 8 bytes, which the note's header and name are not.
MANIFEST_PADDING = 4
MAX_MANIFEST = MANIFEST_PADDING + HEADER.size + MAX_ENTRIES * ENTRY.size


@dataclass(frozen=True, slots=True)
class Segment:
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


@dataclass(frozen=True, slots=True)
class Unikernel:
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
    entry, headers = _headers(read)
    notes = dict(_notes(read, headers))
    target, version = _abi(notes)
    if MANIFEST_NOTE not in notes:
        raise UnikernelError("it has no note MFT1 of Solo5, the manifest of its devices: link it with one")
    devices = parse_manifest(notes[MANIFEST_NOTE][MANIFEST_PADDING:])
    segments = tuple(_segments(headers))
    if not any(s.executable and s.address <= entry < s.address + s.memory_size for s in segments):
        raise UnikernelError(f"its entry {entry:#x} is in none of its executable segments")
    return Unikernel(target, version, devices, entry, segments)


def check_target(unikernel: Unikernel, target: str, version: int, runner: str) -> None:
    """See that a unikernel is for who shall run it. runner: in words, such as "solo5-hvt".

    Raises:
        UnikernelError: it is for another.
    """
    if (unikernel.target, unikernel.version) != (target, version):
        raise UnikernelError(
            f"note ABI1 says target {unikernel.target}, version {unikernel.version}; "
            f"{runner} supports target {target}, version {version}"
        )


def _headers(read: Read) -> tuple[int, list[tuple[int, ...]]]:
    raw = read(0, FILE_HEADER.size)
    if raw[:4] != MAGIC:
        raise UnikernelError(f"it is not an ELF file: it begins with {raw[:4]!r}")
    if len(raw) < FILE_HEADER.size:
        raise UnikernelError("it ends within its ELF header")
    identity, kind, machine, version, entry, offset, _, _, size, entry_size, count, *_ = FILE_HEADER.unpack(
        raw
    )
    if identity[4:6] != bytes((CLASS_64, LITTLE_ENDIAN)) or version != CURRENT or size != FILE_HEADER.size:
        raise UnikernelError("it is not a little-endian ELF file of 64 bits")
    if machine != X86_64:
        raise UnikernelError(
            f"it is for {MACHINES.get(machine, f'ELF machine {machine}')}; supported: x86_64"
        )
    if kind != EXECUTABLE:
        raise UnikernelError(
            f"it is not linked to fixed addresses (ELF type {kind}; supported: {EXECUTABLE}, EXEC)"
        )
    if entry_size != PROGRAM_HEADER.size or not 1 <= count <= MAX_PROGRAM_HEADERS:
        raise UnikernelError(f"it has {count} program headers of {entry_size} bytes")
    table = read(offset, count * PROGRAM_HEADER.size)
    if len(table) < count * PROGRAM_HEADER.size:
        raise UnikernelError("it ends within its program headers")
    return entry, list(PROGRAM_HEADER.iter_unpack(table))


def _notes(read: Read, headers: list[tuple[int, ...]]) -> Iterator[tuple[int, bytes]]:
    """Yield Solo5's notes by type; each has a program header of its own."""
    for kind, _, offset, _, _, size, _, _ in headers:
        head = NOTE_HEADER.size + 8  # the name is padded to a multiple of 4
        if kind != NOTE or size < head:
            continue
        raw = read(offset, head)
        if len(raw) < head:
            raise UnikernelError("it ends within a note")
        name_size, content_size, number = NOTE_HEADER.unpack_from(raw)
        if name_size != len(OWNER) or raw[NOTE_HEADER.size :][: len(OWNER)] != OWNER:
            continue
        if content_size > min(size - head, MAX_MANIFEST):
            raise UnikernelError(
                f"its note of type {number:#x} is larger than its program header, or than is allowed"
            )
        content = read(offset + head, content_size)
        if len(content) < content_size:
            raise UnikernelError("it ends within a note")
        yield number, content


def _abi(notes: Mapping[int, bytes]) -> tuple[str, int]:
    if ABI_NOTE not in notes:
        raise UnikernelError(
            "it has no note ABI1 of Solo5, so it is no Solo5 unikernel; supported: target hvt, version 2"
        )
    if len(notes[ABI_NOTE]) != ABI.size:
        raise UnikernelError(f"its note ABI1 has {len(notes[ABI_NOTE])} bytes, not {ABI.size}")
    target, version, _, _ = ABI.unpack(notes[ABI_NOTE])
    return TARGETS.get(target, f"number {target}"), version


def _segments(headers: list[tuple[int, ...]]) -> Iterator[Segment]:
    end = LOWEST_ADDRESS
    for kind, flags, offset, address, _, file_size, memory_size, alignment in headers:
        if kind != LOAD or memory_size == 0:
            continue
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
        if flags & WRITE and flags & EXECUTE:
            raise UnikernelError(f"{where} is writable and executable at once, which is not allowed")
        end = -(-(address + memory_size) // alignment) * alignment
        yield Segment(address, memory_size, offset, file_size, bool(flags & WRITE), bool(flags & EXECUTE))
