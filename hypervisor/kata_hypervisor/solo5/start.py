"""What a unikernel finds when it starts: its segments, page tables, boot information, and the registers.

Source: Solo5's tenders/hvt (hvt_cpu_x86_64.c, hvt_boot_info.c); Intel's manual, volume 3A, 4.5.
"""

from __future__ import annotations

import fcntl
import os
import struct

from kata_hypervisor.errors import HostUnfitError, UnikernelError
from kata_hypervisor.kvm import abi as kvm
from kata_hypervisor.solo5 import abi
from kata_hypervisor.solo5.memory import Memory
from kata_hypervisor.solo5.unikernel_file import Unikernel

PRESENT, WRITABLE, LARGE = 1 << 0, 1 << 1, 1 << 7
PE, ET, NE, WP, PG = 1 << 0, 1 << 4, 1 << 5, 1 << 16, 1 << 31
PAE, OSFXSR, OSXMMEXCPT = 1 << 5, 1 << 9, 1 << 10
LME, LMA = 1 << 8, 1 << 10
RFLAGS_FIXED = 1 << 1
GDT_ENTRIES = (0, 0xAF99000000FFFF, 0xCF93000000FFFF)  # none, code, data
RED_ZONE = 8  # the stack is aligned as if the entry had been called


def load_segments(memory: Memory, unikernel: Unikernel, file: int) -> None:
    """Read the segments from the open file into fresh memory.

    Raises:
        UnikernelError: the file ends too early, or cannot be read.
    """
    for segment in unikernel.segments:
        view, done = memory.view(segment.address, segment.file_size), 0
        while done < segment.file_size:
            try:
                count = os.preadv(file, [view[done:]], segment.offset + done)
            except OSError as error:
                raise UnikernelError(
                    f"its segment at {segment.address:#x} cannot be read: {error.strerror}"
                ) from error
            if count == 0:
                raise UnikernelError(f"it ends within its segment at {segment.address:#x}")
            done += count


def write_tables(memory: Memory) -> None:
    """Write the descriptors, and page tables that map the memory one to one."""
    _write(memory, abi.GDT, GDT_ENTRIES)
    _write(memory, abi.PML4, [abi.PDPT | PRESENT | WRITABLE])
    _write(
        memory, abi.PDPT, [abi.DIRECTORIES + number * abi.PAGE | PRESENT | WRITABLE for number in range(4)]
    )
    large = [start | PRESENT | WRITABLE | LARGE for start in range(0, memory.size, abi.LARGE_PAGE)]
    _write(memory, abi.DIRECTORIES, [abi.FIRST_TABLE | PRESENT | WRITABLE, *large[1:]])
    _write(memory, abi.FIRST_TABLE, [_first_entry(page) for page in range(0, abi.LARGE_PAGE, abi.PAGE)])


def _first_entry(page: int) -> int:
    """The first 2 MiB by pages: the tables are not mapped, boot information is for reading."""
    if page < abi.LOW:
        return 0
    return page | PRESENT | (WRITABLE if page >= abi.LOWEST else 0)


def write_boot_info(memory: Memory, end: int, frequency: int, command_line: bytes, manifest: bytes) -> None:
    """Write what the guest's entry gets the address of. end: of the segments. frequency: of the TSC, in Hz.

    Raises:
        UnikernelError: the command line is too long.
    """
    if len(command_line) >= abi.COMMAND_LINE:
        most = abi.COMMAND_LINE - 1
        raise UnikernelError(f"its command line has {len(command_line)} bytes; at most {most} are supported")
    manifest_at = abi.BOOT_INFO + abi.BOOT.size
    line_at = manifest_at + len(manifest)
    info = abi.BOOT.pack(memory.size, end, frequency, line_at, manifest_at, 0, 0, 0)
    content = info + manifest + command_line + b"\0"
    memory.view(abi.BOOT_INFO, len(content))[:] = content


def set_registers(vcpu: int, entry: int, memory_size: int) -> None:
    """Let the processor begin at the entry, in 64-bit mode, at the privilege of a kernel."""
    sregs = kvm.KvmSregs()
    fcntl.ioctl(vcpu, kvm.KVM_GET_SREGS, sregs)
    sregs.cs = kvm.KvmSegment(limit=0xFFFFFFFF, selector=8, type=9, present=1, s=1, l=1, g=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, kvm.KvmSegment(limit=0xFFFFFFFF, selector=16, type=3, present=1, db=1, s=1, g=1))
    sregs.tr = kvm.KvmSegment(type=11, present=1)
    sregs.ldt = kvm.KvmSegment(unusable=1)
    sregs.gdt = kvm.KvmDtable(base=abi.GDT, limit=8 * len(GDT_ENTRIES) - 1)
    sregs.idt = kvm.KvmDtable()
    sregs.cr0, sregs.cr3, sregs.cr4 = PE | ET | NE | WP | PG, abi.PML4, PAE | OSFXSR | OSXMMEXCPT
    sregs.efer = LME | LMA
    fcntl.ioctl(vcpu, kvm.KVM_SET_SREGS, sregs)
    stack = memory_size - RED_ZONE
    regs = kvm.KvmRegs(rip=entry, rsp=stack, rdi=abi.BOOT_INFO, rflags=RFLAGS_FIXED)
    fcntl.ioctl(vcpu, kvm.KVM_SET_REGS, regs)


def cycles_per_second(vcpu: int) -> int:
    """The frequency of the guest's time-stamp counter, in Hz. Raises HostUnfitError: it is not constant."""
    try:
        return fcntl.ioctl(vcpu, kvm.KVM_GET_TSC_KHZ) * 1000
    except OSError as error:
        raise HostUnfitError(
            f"cannot give the unikernel its processor's frequency: {error.strerror}: "
            "the host's time-stamp counter is not stable"
        ) from error


def _write(memory: Memory, address: int, entries: list[int] | tuple[int, ...]) -> None:
    struct.pack_into(f"<{len(entries)}Q", memory.view(address, 8 * len(entries)), 0, *entries)
