"""What a file that QEMU or Firecracker shall start as a kernel is, by its headers and notes.

The file is hostile; nothing here loads it, which is the VMM's business, inside its filter. Sources: Linux'
Documentation/arch/x86/boot.rst; the Multiboot Specification, 3.1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from enum import Enum
from pathlib import Path

from kata_hypervisor import elf
from kata_hypervisor.contract import UnikernelSpec
from kata_hypervisor.driver_info import DriverInfo
from kata_hypervisor.elf import ElfError, ElfFile
from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.solo5.unikernel_file import ABI, ABI_NOTE, OWNER, TARGETS
from kata_hypervisor.versions import numbers_of

HEAD = 8192  # within which Multiboot's header lies
BOOT_FLAG, SETUP_MAGIC = slice(0x1FE, 0x200), slice(0x202, 0x206)
MULTIBOOT = 0x1BADB002


class Protocol(Enum):
    """How a file is started, as messages name it."""

    LINUX = "a Linux bzImage"
    MULTIBOOT = "a multiboot kernel"
    PVH = "an ELF kernel with the PVH note (Xen, type 18)"
    ELF_64 = "an ELF kernel of 64 bits"


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
    if _is_bzimage(head):
        return Protocol.LINUX
    if _is_multiboot(head):
        return Protocol.MULTIBOOT
    if head[:4] != elf.MAGIC:
        raise UnikernelError(f"it is no kernel: it begins with {head[:4]!r}")
    try:
        return _elf_protocol(descriptor)
    except ElfError as error:
        raise UnikernelError(f"it {error}") from error


def unbootable(info: DriverInfo, version: str, kernel: Path) -> str:
    """Why a version of a VMM does not boot a kernel, in a sentence; empty where nothing is known against it.

    Raises:
        OSError: the kernel cannot be read.
    """
    number, needed = numbers_of(version), numbers_of(info.boots_bzimage)
    if number is None or needed is None or number >= needed:
        return ""
    with kernel.open("rb") as file:
        if not _is_bzimage(file.read(HEAD)):
            return ""
    return (
        f"{info.program} {version} loads ELF kernels only, and {kernel} is a bzImage: install "
        f"{info.boots_bzimage} or later, or name the ELF file, vmlinux, in kernel of [hypervisor.{info.name}]"
    )


def _is_bzimage(head: bytes) -> bool:
    return head[BOOT_FLAG] == b"\x55\xaa" and head[SETUP_MAGIC] == b"HdrS"


def _is_multiboot(head: bytes) -> bool:
    for offset in range(0, len(head) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", head, offset)
        if magic == MULTIBOOT and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return True
    return False


def _elf_protocol(descriptor: int) -> Protocol:
    file = ElfFile(elf.reader_of(descriptor))
    if file.header.e_machine not in (elf.EM_386, elf.EM_X86_64):
        raise ElfError(f"is an ELF file for {file.machine}, not for x86")
    for program in file.programs():
        if program.p_type != elf.PT_NOTE:
            continue
        for note in file.notes(program):
            if (note.owner, note.kind) == elf.XEN_PVH_ENTRY:
                return Protocol.PVH
            if (note.owner, note.kind, len(note.content)) == (OWNER, ABI_NOTE, ABI.size):
                target, version, _, _ = ABI.unpack(note.content)
                raise UnikernelError(
                    f"its note ABI1 says target {TARGETS.get(target, f'number {target}')}, version {version}"
                )
    if file.bits == 32:
        raise ElfError("is an ELF file of 32 bits without the PVH note (Xen, type 18)")
    return Protocol.ELF_64
