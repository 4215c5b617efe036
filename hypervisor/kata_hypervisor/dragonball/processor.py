"""A virtual processor's state when it starts: registers, model-specific registers, local APIC.

Sources: Linux' Documentation/x86/boot.rst, 64-bit boot protocol; Xen's PVH boot protocol; Intel's manual, 3A.
"""

from __future__ import annotations

import fcntl
import struct

from kata_hypervisor.dragonball import layout
from kata_hypervisor.dragonball.kernel import Entry, KernelImage
from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.errors import KvmRefusedError
from kata_hypervisor.kvm import abi

PE, ET, PG = 1 << 0, 1 << 4, 1 << 31
PAE = 1 << 5
LME, LMA = 1 << 8, 1 << 10
RFLAGS_FIXED = 1 << 1

CODE_64, CODE_32 = 0xA09B, 0xC09B
DATA, TASK_64, TASK_32 = 0xC093, 0x808B, 0x008B
LIMIT, TASK_LIMIT_32 = 0xFFFFF, 0x67

FPU_CONTROL, MXCSR = 0x37F, 0x1F80

FAST_STRING = 1 << 0
MTRR_ENABLE, WRITE_BACK = 1 << 11, 6

# What a processor has after reset, by the names of Linux' asm/msr-index.h.
MODEL_SPECIFIC = {
    "IA32_SYSENTER_CS": (0x174, 0),
    "IA32_SYSENTER_ESP": (0x175, 0),
    "IA32_SYSENTER_EIP": (0x176, 0),
    "STAR": (0xC0000081, 0),
    "LSTAR": (0xC0000082, 0),
    "CSTAR": (0xC0000083, 0),
    "SYSCALL_MASK": (0xC0000084, 0),
    "KERNEL_GS_BASE": (0xC0000102, 0),
    "IA32_TSC": (0x10, 0),
    "IA32_MISC_ENABLE": (0x1A0, FAST_STRING),
    "MTRRdefType": (0x2FF, MTRR_ENABLE | WRITE_BACK),
}

APIC_LVT0, APIC_LVT1 = 0x350, 0x360
DELIVERY_MODE, EXTERNAL, NON_MASKABLE = 0x700, 7 << 8, 4 << 8


def prepare_boot_processor(vcpu: int, memory: GuestMemory, image: KernelImage) -> None:
    """Let the processor begin at the kernel's entry, in the mode that this entry wants."""
    long_mode = image.entry is Entry.LINUX
    code, task = (CODE_64, TASK_64) if long_mode else (CODE_32, TASK_32)
    task_limit = LIMIT if long_mode else TASK_LIMIT_32
    _write_descriptors(memory, code, task, task_limit)
    sregs = abi.KvmSregs()
    fcntl.ioctl(vcpu, abi.KVM_GET_SREGS, sregs)
    sregs.cs = _segment(1, code, LIMIT)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, _segment(2, DATA, LIMIT))
    sregs.tr = _segment(3, task, task_limit)
    sregs.gdt = abi.KvmDtable(base=layout.GDT, limit=31)
    sregs.idt = abi.KvmDtable(base=layout.IDT, limit=7)
    if long_mode:
        sregs.cr0 |= PE | PG
        sregs.cr3, sregs.cr4, sregs.efer = layout.PML4, sregs.cr4 | PAE, sregs.efer | LME | LMA
    else:
        sregs.cr0, sregs.cr4 = PE | ET, 0
    fcntl.ioctl(vcpu, abi.KVM_SET_SREGS, sregs)
    regs = abi.KvmRegs(rflags=RFLAGS_FIXED, rip=image.address)
    if long_mode:
        regs.rsp, regs.rbp, regs.rsi = layout.STACK, layout.STACK, layout.BOOT_PARAMS
    else:
        regs.rbx = layout.START_INFO
    fcntl.ioctl(vcpu, abi.KVM_SET_REGS, regs)


def prepare_any_processor(vcpu: int) -> None:
    """What every processor has, those too that wait for the boot processor's word."""
    fcntl.ioctl(vcpu, abi.KVM_SET_FPU, abi.KvmFpu(fcw=FPU_CONTROL, mxcsr=MXCSR))
    _set_model_specific(vcpu)
    apic = abi.KvmLapicState()
    fcntl.ioctl(vcpu, abi.KVM_GET_LAPIC, apic)
    for register, mode in ((APIC_LVT0, EXTERNAL), (APIC_LVT1, NON_MASKABLE)):
        (value,) = struct.unpack_from("<I", apic.regs, register)
        struct.pack_into("<I", apic.regs, register, value & ~DELIVERY_MODE | mode)
    fcntl.ioctl(vcpu, abi.KVM_SET_LAPIC, apic)


def _set_model_specific(vcpu: int) -> None:
    msrs = abi.KvmMsrs(nmsrs=len(MODEL_SPECIFIC))
    for number, (index, value) in enumerate(MODEL_SPECIFIC.values()):
        msrs.entries[number] = abi.KvmMsrEntry(index=index, data=value)
    accepted = fcntl.ioctl(vcpu, abi.KVM_SET_MSRS, msrs)
    if accepted != len(MODEL_SPECIFIC):
        name = list(MODEL_SPECIFIC)[accepted]
        raise KvmRefusedError(f"cannot set up a virtual processor: KVM refuses its register {name}")


def _write_descriptors(memory: GuestMemory, code: int, task: int, task_limit: int) -> None:
    entries = ((0, 0), (code, LIMIT), (DATA, LIMIT), (task, task_limit))
    memory.write(layout.GDT, b"".join(struct.pack("<Q", _descriptor(*entry)) for entry in entries))
    memory.write(layout.IDT, bytes(8))


def _descriptor(flags: int, limit: int) -> int:
    """A segment descriptor with base 0: access byte and flags as in KVM's and Firecracker's notation."""
    return (flags & 0xF0FF) << 40 | (limit & 0xF0000) << 32 | limit & 0xFFFF


def _segment(number: int, flags: int, limit: int) -> abi.KvmSegment:
    large = flags >> 15 & 1
    return abi.KvmSegment(
        limit=limit << 12 | 0xFFF if large else limit,
        selector=8 * number,
        type=flags & 0xF,
        s=flags >> 4 & 1,
        dpl=flags >> 5 & 3,
        present=flags >> 7 & 1,
        avl=flags >> 12 & 1,
        l=flags >> 13 & 1,
        db=flags >> 14 & 1,
        g=large,
    )
