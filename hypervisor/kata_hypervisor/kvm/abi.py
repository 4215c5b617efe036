"""KVM's structures and ioctl numbers, as far as the probe and the in-process VMM need them, on x86_64.

Source: linux/kvm.h and asm/kvm.h of Linux 6.1; a structure has the kernel's name in camel case, its fields
have the kernel's names.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint8, c_uint16, c_uint32, c_uint64, sizeof

KVM_API_VERSION = 12
MAX_CPUID_ENTRIES = 256
MAX_MSR_ENTRIES = 256
MAX_MSR_INDICES = 1024

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IO_OUT = 1
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2

KVM_CAP_READONLY_MEM = 81
KVM_MEM_READONLY = 1 << 1

KVM_PIT_SPEAKER_DUMMY = 1
KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0


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


class KvmRunMmio(Structure):
    """struct kvm_run, member mmio"""

    _fields_ = (("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8))


class KvmRunFailEntry(Structure):
    """struct kvm_run, member fail_entry"""

    _fields_ = (("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32))


class KvmRunSystemEvent(Structure):
    """struct kvm_run, member system_event"""

    _fields_ = (("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class KvmRunExit(Union):
    """struct kvm_run, the union of what each exit reason reports"""

    _fields_ = (
        ("io", KvmRunIo),
        ("mmio", KvmRunMmio),
        ("internal", KvmRunInternal),
        ("fail_entry", KvmRunFailEntry),
        ("system_event", KvmRunSystemEvent),
        ("padding", c_uint8 * 256),
    )


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


class KvmFpu(Structure):
    """struct kvm_fpu"""

    _fields_ = (
        ("fpr", c_uint8 * 16 * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", c_uint8 * 16 * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    )


class KvmMsrEntry(Structure):
    """struct kvm_msr_entry"""

    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class KvmMsrs(Structure):
    """struct kvm_msrs, with room for the most entries that the kernel takes"""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32), ("entries", KvmMsrEntry * MAX_MSR_ENTRIES))


class KvmMsrList(Structure):
    """struct kvm_msr_list, with room for some indices"""

    _fields_ = (("nmsrs", c_uint32), ("indices", c_uint32 * MAX_MSR_INDICES))


class KvmMpState(Structure):
    """struct kvm_mp_state"""

    _fields_ = (("mp_state", c_uint32),)


class KvmXsave(Structure):
    """struct kvm_xsave, without what KVM_GET_XSAVE2 may append"""

    _fields_ = (("region", c_uint32 * 1024),)


class KvmXcr(Structure):
    """struct kvm_xcr"""

    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))


class KvmXcrs(Structure):
    """struct kvm_xcrs"""

    _fields_ = (
        ("nr_xcrs", c_uint32),
        ("flags", c_uint32),
        ("xcrs", KvmXcr * 16),
        ("padding", c_uint64 * 16),
    )


class KvmDebugregs(Structure):
    """struct kvm_debugregs"""

    _fields_ = (
        ("db", c_uint64 * 4),
        *((name, c_uint64) for name in ("dr6", "dr7", "flags")),
        ("reserved", c_uint64 * 9),
    )


class KvmVcpuEvents(Structure):
    """struct kvm_vcpu_events; its members, which only the kernel looks into, as bytes"""

    _fields_ = (
        ("exception", c_uint8 * 8),
        ("interrupt", c_uint8 * 4),
        ("nmi", c_uint8 * 4),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", c_uint8 * 4),
        ("triple_fault", c_uint8 * 1),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


class KvmIrqchip(Structure):
    """struct kvm_irqchip; the chip's registers as bytes"""

    _fields_ = (("chip_id", c_uint32), ("pad", c_uint32), ("chip", c_uint8 * 512))


class KvmPitState2(Structure):
    """struct kvm_pit_state2; its channels as bytes"""

    _fields_ = (("channels", c_uint8 * 24 * 3), ("flags", c_uint32), ("reserved", c_uint32 * 9))


class KvmClockData(Structure):
    """struct kvm_clock_data"""

    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    )


class KvmLapicState(Structure):
    """struct kvm_lapic_state"""

    _fields_ = (("regs", c_uint8 * 1024),)


class KvmPitConfig(Structure):
    """struct kvm_pit_config"""

    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


class KvmIrqfd(Structure):
    """struct kvm_irqfd"""

    _fields_ = (
        *((name, c_uint32) for name in ("fd", "gsi", "flags", "resamplefd")),
        ("pad", c_uint8 * 16),
    )


class KvmIoeventfd(Structure):
    """struct kvm_ioeventfd"""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


def _request(direction: int, number: int, size: int = 0) -> int:
    """The kernel's _IOC for type 0xAE. direction: 0 none, 1 the kernel reads, 2 it writes, 3 both."""
    return direction << 30 | size << 16 | 0xAE << 8 | number


CPUID_HEADER = 8
MSRS_HEADER = 8

KVM_GET_API_VERSION = _request(0, 0x00)
KVM_CREATE_VM = _request(0, 0x01)
KVM_CHECK_EXTENSION = _request(0, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _request(0, 0x04)
KVM_GET_SUPPORTED_CPUID = _request(3, 0x05, CPUID_HEADER)
KVM_GET_MSR_INDEX_LIST = _request(3, 0x02, 4)
KVM_CREATE_VCPU = _request(0, 0x41)
KVM_SET_TSS_ADDR = _request(0, 0x47)
KVM_SET_IDENTITY_MAP_ADDR = _request(1, 0x48, 8)
KVM_CREATE_IRQCHIP = _request(0, 0x60)
KVM_GET_IRQCHIP = _request(3, 0x62, sizeof(KvmIrqchip))
KVM_SET_IRQCHIP = _request(2, 0x63, sizeof(KvmIrqchip))
KVM_IRQFD = _request(1, 0x76, sizeof(KvmIrqfd))
KVM_CREATE_PIT2 = _request(1, 0x77, sizeof(KvmPitConfig))
KVM_IOEVENTFD = _request(1, 0x79, sizeof(KvmIoeventfd))
KVM_SET_CLOCK = _request(1, 0x7B, sizeof(KvmClockData))
KVM_GET_CLOCK = _request(2, 0x7C, sizeof(KvmClockData))
KVM_GET_PIT2 = _request(2, 0x9F, sizeof(KvmPitState2))
KVM_SET_PIT2 = _request(1, 0xA0, sizeof(KvmPitState2))
KVM_SET_USER_MEMORY_REGION = _request(1, 0x46, sizeof(KvmUserspaceMemoryRegion))
KVM_RUN = _request(0, 0x80)
KVM_GET_REGS = _request(2, 0x81, sizeof(KvmRegs))
KVM_SET_REGS = _request(1, 0x82, sizeof(KvmRegs))
KVM_GET_SREGS = _request(2, 0x83, sizeof(KvmSregs))
KVM_SET_SREGS = _request(1, 0x84, sizeof(KvmSregs))
KVM_SET_CPUID2 = _request(1, 0x90, CPUID_HEADER)
KVM_GET_MSRS = _request(3, 0x88, MSRS_HEADER)
KVM_SET_MSRS = _request(1, 0x89, MSRS_HEADER)
KVM_SET_FPU = _request(1, 0x8D, sizeof(KvmFpu))
KVM_GET_LAPIC = _request(2, 0x8E, sizeof(KvmLapicState))
KVM_SET_LAPIC = _request(1, 0x8F, sizeof(KvmLapicState))
KVM_GET_MP_STATE = _request(2, 0x98, sizeof(KvmMpState))
KVM_SET_MP_STATE = _request(1, 0x99, sizeof(KvmMpState))
KVM_GET_VCPU_EVENTS = _request(2, 0x9F, sizeof(KvmVcpuEvents))
KVM_SET_VCPU_EVENTS = _request(1, 0xA0, sizeof(KvmVcpuEvents))
KVM_GET_DEBUGREGS = _request(2, 0xA1, sizeof(KvmDebugregs))
KVM_SET_DEBUGREGS = _request(1, 0xA2, sizeof(KvmDebugregs))
KVM_GET_XSAVE = _request(2, 0xA4, sizeof(KvmXsave))
KVM_SET_XSAVE = _request(1, 0xA5, sizeof(KvmXsave))
KVM_GET_XCRS = _request(2, 0xA6, sizeof(KvmXcrs))
KVM_SET_XCRS = _request(1, 0xA7, sizeof(KvmXcrs))
KVM_SET_TSC_KHZ = _request(0, 0xA2)
KVM_GET_TSC_KHZ = _request(0, 0xA3)
KVM_KVMCLOCK_CTRL = _request(0, 0xAD)
