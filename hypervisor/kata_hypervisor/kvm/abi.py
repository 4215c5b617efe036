"""KVM's structures and ioctl numbers, as far as the probe needs them, on x86_64.

Source: linux/kvm.h and asm/kvm.h of Linux 6.1; a structure has the kernel's name in camel case, its fields
have the kernel's names.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_uint8, c_uint16, c_uint32, c_uint64, sizeof

KVM_API_VERSION = 12
MAX_CPUID_ENTRIES = 256

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_IO_OUT = 1
KVM_INTERNAL_ERROR_EMULATION = 1


class KvmSegment(Structure):
    """struct kvm_segment"""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )


class KvmDtable(Structure):
    """struct kvm_dtable"""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


class KvmSregs(Structure):
    """struct kvm_sregs"""

    _fields_ = (
        *((name, KvmSegment) for name in SEGMENTS),
        ("gdt", KvmDtable),
        ("idt", KvmDtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class KvmRegs(Structure):
    """struct kvm_regs"""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *(f"r{number}" for number in range(8, 16)),
            *("rip", "rflags"),
        )
    )


class KvmUserspaceMemoryRegion(Structure):
    """struct kvm_userspace_memory_region"""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class KvmCpuidEntry2(Structure):
    """struct kvm_cpuid_entry2"""

    _fields_ = (
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    )


class KvmCpuid2(Structure):
    """struct kvm_cpuid2, with room for the most entries that the kernel takes"""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32), ("entries", KvmCpuidEntry2 * MAX_CPUID_ENTRIES))


class KvmRunIo(Structure):
    """struct kvm_run, member io"""

    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class KvmRunInternal(Structure):
    """struct kvm_run, member internal"""

    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class KvmRunExit(Union):
    """struct kvm_run, the union of what each exit reason reports"""

    _fields_ = (("io", KvmRunIo), ("internal", KvmRunInternal), ("padding", c_uint8 * 256))


class KvmRun(Structure):
    """struct kvm_run, up to and including the union"""

    _anonymous_ = ("exit",)
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", KvmRunExit),
    )


def _request(direction: int, number: int, size: int = 0) -> int:
    """The kernel's _IOC for type 0xAE. direction: 0 none, 1 the kernel reads, 2 it writes, 3 both."""
    return direction << 30 | size << 16 | 0xAE << 8 | number


CPUID_HEADER = 8

KVM_GET_API_VERSION = _request(0, 0x00)
KVM_CREATE_VM = _request(0, 0x01)
KVM_GET_VCPU_MMAP_SIZE = _request(0, 0x04)
KVM_GET_SUPPORTED_CPUID = _request(3, 0x05, CPUID_HEADER)
KVM_CREATE_VCPU = _request(0, 0x41)
KVM_SET_USER_MEMORY_REGION = _request(1, 0x46, sizeof(KvmUserspaceMemoryRegion))
KVM_RUN = _request(0, 0x80)
KVM_SET_REGS = _request(1, 0x82, sizeof(KvmRegs))
KVM_GET_SREGS = _request(2, 0x83, sizeof(KvmSregs))
KVM_SET_SREGS = _request(1, 0x84, sizeof(KvmSregs))
KVM_SET_CPUID2 = _request(1, 0x90, CPUID_HEADER)
