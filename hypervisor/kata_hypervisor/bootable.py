"""What a file that QEMU or Firecracker shall start as a kernel is, told by its headers and notes.

The file is hostile; nothing here loads it, which is the VMM's business, inside its filter. Sources: Linux'
Documentation/arch/x86/boot.rst; the Multiboot Specification, 3.1; the ELF specification; Xen's
public/elfnote.h (note 18, XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from kata_hypervisor.contract import UnikernelSpec
from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.solo5.elf import ABI, ABI_NOTE, MACHINES, OWNER, TARGETS

HEAD = 8192  # within which Multiboot's header lies
BOOT_FLAG, SETUP_MAGIC = slice(0x1FE, 0x200), slice(0x202, 0x206)
MULTIBOOT = 0x1BADB002

ELF = b"\x7fELF"
I386, X86_64 = 3, 62
NOTE = 4
MAX_PROGRAM_HEADERS = 64
MAX_NOTES = 1 << 16
PVH_OWNER, PVH_ENTRY = b"Xen\0", 18


class Protocol(Enum):
    """How a file is started, in words."""

    LINUX = "a Linux bzImage"
    MULTIBOOT = "a multiboot kernel"
    PVH = "an ELF kernel with the PVH note (Xen, type 18)"
    ELF_64 = "an ELF kernel of 64 bits"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Of an ELF file's class. header: e_machine, e_phoff, e_phentsize, e_phnum; program: offset and size."""

    header: struct.Struct
    program: struct.Struct


# Of a program header, what follows p_type: p_offset and p_filesz, the padding being other fields.
LAYOUTS = {
    1: _Layout(struct.Struct("<18xH8xI10xHH"), struct.Struct("<II8xI12x")),
    2: _Layout(struct.Struct("<18xH12xQ14xHH"), struct.Struct("<I4xQ16xQ16x")),
}


def check_bootable(descriptor: int, name: str, monitor: str, able: Collection[Protocol]) -> Protocol:
    """Tell how a file is started. able: what the monitor does.

    Raises:
        UnikernelError: the monitor does not start such a file; says what it is, and what would do.
    """
    try:
        found = _protocol_of(descriptor)
        if found not in able:
            raise UnikernelError(f"it is {found.value}")
    except (UnikernelError, OSError) as error:
        known = ", ".join(one.value for one in Protocol if one in able)
        raise UnikernelError(
            f"cannot run the unikernel {name}: {error}; {monitor} starts: {known}"
        ) from error
    return found


def check_room(spec: UnikernelSpec) -> None:
    """Refuse what is larger than the guest's memory, before a VMM tries. Raises UnikernelError."""
    files = {"file": spec.file, **({"initrd": spec.initrd} if spec.initrd is not None else {})}
    size = sum(os.fstat(descriptor).st_size for descriptor in files.values())
    if size >= spec.memory_mib << 20:
        raise UnikernelError(
            f"cannot run the unikernel {spec.name}: its {' and '.join(files)} have {-(-size >> 20)} MiB, its "
            f"memory {spec.memory_mib} MiB: raise its memory limit"
        )


def _protocol_of(descriptor: int) -> Protocol:
    head = os.pread(descriptor, HEAD, 0)
    if head[BOOT_FLAG] == b"\x55\xaa" and head[SETUP_MAGIC] == b"HdrS":
        return Protocol.LINUX
    if _is_multiboot(head):
        return Protocol.MULTIBOOT
    if head[:4] != ELF:
        raise UnikernelError(f"it is no kernel: it begins with {head[:4]!r}")
    return _elf_protocol(descriptor, head)


def _is_multiboot(head: bytes) -> bool:
    for offset in range(0, len(head) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", head, offset)
        if magic == MULTIBOOT and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return True
    return False


def _elf_protocol(descriptor: int, head: bytes) -> Protocol:
    layout = LAYOUTS.get(head[4]) if len(head) > 64 and head[5] == 1 else None
    if layout is None:
        raise UnikernelError("it is an ELF file, but not a little-endian one of 32 or 64 bits")
    machine, offset, size, count = layout.header.unpack_from(head)
    if machine not in (I386, X86_64):
        raise UnikernelError(
            f"it is an ELF file for {MACHINES.get(machine, f'machine {machine}')}, not for x86"
        )
    if size != layout.program.size or not 1 <= count <= MAX_PROGRAM_HEADERS:
        raise UnikernelError(f"it is an ELF file with {count} program headers of {size} bytes")
    table = _read(descriptor, size * count, offset)
    if len(table) < size * count:
        raise UnikernelError("it is an ELF file that ends within its program headers")
    for kind, where, length in layout.program.iter_unpack(table):
        if kind != NOTE:
            continue
        for owner, number, content in _notes(_read(descriptor, min(length, MAX_NOTES), where)):
            if (owner, number) == (PVH_OWNER, PVH_ENTRY):
                return Protocol.PVH
            if (owner, number, len(content)) == (OWNER, ABI_NOTE, ABI.size):
                target, version, _, _ = ABI.unpack(content)
                raise UnikernelError(
                    f"its note ABI1 says target {TARGETS.get(target, f'number {target}')}, version {version}"
                )
    if head[4] == 1:
        raise UnikernelError("it is an ELF file of 32 bits without the PVH note (Xen, type 18)")
    return Protocol.ELF_64


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """What is there of it; a file of 64 bits may name an offset that no file has."""
    return os.pread(descriptor, size, offset) if offset < 1 << 63 else b""


def _notes(raw: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield owner, type and content; stops at what is damaged."""
    at = 0
    while at + 12 <= len(raw):
        owner_size, size, kind = struct.unpack_from("<III", raw, at)
        content = at + 12 + (owner_size + 3 & ~3)
        yield raw[at + 12 : at + 12 + owner_size], kind, raw[content : content + size]
        at = content + (size + 3 & ~3)
