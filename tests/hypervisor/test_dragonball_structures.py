"""Our structures and numbers against the kernel's headers: a C program says what these hold."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from kata_hypervisor import elf
from kata_hypervisor.dragonball import acpi, boot, kernel
from kata_hypervisor.dragonball.virtio import balloon, block, network, vhost
from kata_hypervisor.dragonball.virtio import queue as virtqueue
from kata_hypervisor.kvm import abi

PAIRS: dict[str, tuple[str, type[ctypes.Structure] | type[ctypes.LittleEndianStructure]]] = {
    "struct kvm_segment": ("linux/kvm.h", abi.KvmSegment),
    "struct kvm_dtable": ("linux/kvm.h", abi.KvmDtable),
    "struct kvm_sregs": ("linux/kvm.h", abi.KvmSregs),
    "struct kvm_regs": ("linux/kvm.h", abi.KvmRegs),
    "struct kvm_fpu": ("linux/kvm.h", abi.KvmFpu),
    "struct kvm_userspace_memory_region": ("linux/kvm.h", abi.KvmUserspaceMemoryRegion),
    "struct kvm_cpuid_entry2": ("linux/kvm.h", abi.KvmCpuidEntry2),
    "struct kvm_msr_entry": ("linux/kvm.h", abi.KvmMsrEntry),
    "struct kvm_lapic_state": ("linux/kvm.h", abi.KvmLapicState),
    "struct kvm_mp_state": ("linux/kvm.h", abi.KvmMpState),
    "struct kvm_xsave": ("linux/kvm.h", abi.KvmXsave),
    "struct kvm_xcr": ("linux/kvm.h", abi.KvmXcr),
    "struct kvm_xcrs": ("linux/kvm.h", abi.KvmXcrs),
    "struct kvm_debugregs": ("linux/kvm.h", abi.KvmDebugregs),
    "struct kvm_vcpu_events": ("linux/kvm.h", abi.KvmVcpuEvents),
    "struct kvm_irqchip": ("linux/kvm.h", abi.KvmIrqchip),
    "struct kvm_pit_state2": ("linux/kvm.h", abi.KvmPitState2),
    "struct kvm_clock_data": ("linux/kvm.h", abi.KvmClockData),
    "struct kvm_pit_config": ("linux/kvm.h", abi.KvmPitConfig),
    "struct kvm_irqfd": ("linux/kvm.h", abi.KvmIrqfd),
    "struct kvm_ioeventfd": ("linux/kvm.h", abi.KvmIoeventfd),
    "struct vhost_vring_state": ("linux/vhost.h", vhost.VhostVringState),
    "struct vhost_vring_file": ("linux/vhost.h", vhost.VhostVringFile),
    "struct vhost_vring_addr": ("linux/vhost.h", vhost.VhostVringAddr),
    "struct vhost_memory_region": ("linux/vhost.h", vhost.VhostMemoryRegion),
    "struct setup_header": ("asm/bootparam.h", kernel.SetupHeader),
    "struct boot_params": ("asm/bootparam.h", boot.BootParams),
    "struct boot_e820_entry": ("asm/bootparam.h", boot.BootE820Entry),
    "Elf64_Ehdr": ("linux/elf.h", elf.Elf64Header),
    "Elf32_Ehdr": ("linux/elf.h", elf.Elf32Header),
    "Elf64_Phdr": ("linux/elf.h", elf.Elf64Program),
    "Elf32_Phdr": ("linux/elf.h", elf.Elf32Program),
    "Elf64_Shdr": ("linux/elf.h", elf.Elf64Section),
    "Elf32_Shdr": ("linux/elf.h", elf.Elf32Section),
    "Elf64_Nhdr": ("linux/elf.h", elf.ElfNoteHeader),
    "Elf32_Nhdr": ("linux/elf.h", elf.ElfNoteHeader),
    "struct virtio_net_config": ("linux/virtio_net.h", network.NetworkConfiguration),
    "struct virtio_balloon_config": ("linux/virtio_balloon.h", balloon.BalloonConfiguration),
}

# The kernel's structure has more members than ours, which says only what is used.
PARTIAL = {"struct virtio_net_config", "struct virtio_balloon_config"}

CONSTANTS = {
    "linux/kvm.h": [
        *("KVM_GET_API_VERSION", "KVM_CREATE_VM", "KVM_GET_VCPU_MMAP_SIZE", "KVM_GET_SUPPORTED_CPUID"),
        *("KVM_CREATE_VCPU", "KVM_SET_TSS_ADDR", "KVM_SET_IDENTITY_MAP_ADDR", "KVM_CREATE_IRQCHIP"),
        *("KVM_IRQFD", "KVM_CREATE_PIT2", "KVM_IOEVENTFD", "KVM_SET_USER_MEMORY_REGION", "KVM_RUN"),
        *("KVM_SET_REGS", "KVM_GET_SREGS", "KVM_SET_SREGS", "KVM_SET_CPUID2", "KVM_SET_MSRS", "KVM_SET_FPU"),
        *("KVM_GET_LAPIC", "KVM_SET_LAPIC", "KVM_KVMCLOCK_CTRL", "KVM_PIT_SPEAKER_DUMMY"),
        *("KVM_GET_MSR_INDEX_LIST", "KVM_GET_MSRS", "KVM_GET_REGS", "KVM_SET_TSC_KHZ", "KVM_GET_TSC_KHZ"),
        *("KVM_GET_MP_STATE", "KVM_SET_MP_STATE", "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS"),
        *("KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS", "KVM_GET_XSAVE", "KVM_SET_XSAVE", "KVM_GET_XCRS"),
        *("KVM_SET_XCRS", "KVM_GET_IRQCHIP", "KVM_SET_IRQCHIP", "KVM_GET_PIT2", "KVM_SET_PIT2"),
        *("KVM_GET_CLOCK", "KVM_SET_CLOCK"),
        *("KVM_IOEVENTFD_FLAG_DATAMATCH", "KVM_CPUID_FLAG_SIGNIFCANT_INDEX"),
        *("KVM_EXIT_IO", "KVM_EXIT_HLT", "KVM_EXIT_MMIO", "KVM_EXIT_SHUTDOWN", "KVM_EXIT_FAIL_ENTRY"),
        *("KVM_EXIT_INTR", "KVM_EXIT_INTERNAL_ERROR", "KVM_EXIT_SYSTEM_EVENT", "KVM_EXIT_IO_OUT"),
        *("KVM_INTERNAL_ERROR_EMULATION", "KVM_SYSTEM_EVENT_SHUTDOWN", "KVM_SYSTEM_EVENT_RESET"),
    ],
    "linux/vhost.h": [
        *("VHOST_GET_FEATURES", "VHOST_SET_FEATURES", "VHOST_SET_OWNER", "VHOST_SET_MEM_TABLE"),
        *("VHOST_SET_VRING_NUM", "VHOST_SET_VRING_ADDR", "VHOST_SET_VRING_BASE", "VHOST_SET_VRING_KICK"),
        *("VHOST_GET_VRING_BASE", "VHOST_SET_VRING_CALL", "VHOST_NET_SET_BACKEND", "VHOST_VSOCK_SET_RUNNING"),
    ],
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the kernel's headers say: sizes by type, offsets by type.member, values by name."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    headers = dict.fromkeys([*(header for header, _ in PAIRS.values()), *CONSTANTS])
    if missing := [name for name in headers if not compiles(compiler, f"#include <{name}>\n")]:
        pytest.skip(f"the kernel's headers lack {missing[0]}: install linux-libc-dev")
    lines = [f"#include <{name}>" for name in ("stdio.h", "stddef.h", "stdint.h", *headers)]
    lines.append('#define SHOW(name, value) printf("%s %llu\\n", name, (unsigned long long)(value));')
    lines.append("int main(void) {")
    for name, (_, structure) in PAIRS.items():
        lines.append(f'SHOW("{name}", sizeof({name}))')
        lines += [f'SHOW("{name}.{one}", offsetof({name}, {one}))' for one in members(structure)]
    lines += [f'SHOW("{name}", {name})' for names in CONSTANTS.values() for name in names]
    directory = tmp_path_factory.mktemp("facts")
    (directory / "facts.c").write_text("\n".join([*lines, "}"]))
    subprocess.run([compiler, "facts.c", "-o", "facts"], cwd=directory, check=True)
    output = subprocess.run([directory / "facts"], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, _, value in (line.rpartition(" ") for line in output.splitlines())}


def compiles(compiler: str, source: str) -> bool:
    """Whether a C source can be compiled."""
    command = [compiler, "-fsyntax-only", "-xc", "-"]
    return subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0


def members(structure: type[ctypes.Structure] | type[ctypes.LittleEndianStructure]) -> list[str]:
    """The members that the kernel has too: not our fillers, nor what its headers name otherwise."""
    renamed = {"jump", "padding", "pad", "pad1", "pad2", "reserved", "flags_padding", "size_max"}
    return [field[0] for field in structure._fields_ if field[0] not in renamed and field[0][0] != "_"]


@pytest.mark.parametrize("name", PAIRS)
def test_a_structure_is_the_kernels(facts: dict[str, int], name: str) -> None:
    _, structure = PAIRS[name]
    if name not in PARTIAL:
        assert ctypes.sizeof(structure) == facts[name]
    offsets = {one: getattr(structure, one).offset for one in members(structure)}
    assert offsets == {one: facts[f"{name}.{one}"] for one in offsets}


@pytest.mark.parametrize(
    ("header", "name"), [(header, name) for header in CONSTANTS for name in CONSTANTS[header]]
)
def test_a_number_is_the_kernels(facts: dict[str, int], header: str, name: str) -> None:
    module = abi if header == "linux/kvm.h" else vhost
    assert getattr(module, name) == facts[name]


def test_sizes_that_only_a_specification_gives() -> None:
    assert virtqueue.DESCRIPTOR.size == 16
    assert block.HEADER.size == 16
    assert ctypes.sizeof(block.BlockConfiguration) == 24
    assert ctypes.sizeof(acpi.TableHeader) == 36
    assert ctypes.sizeof(acpi.TableHeader) + ctypes.sizeof(acpi.Fadt) == 276
    assert ctypes.sizeof(acpi.Rsdp) == 36
    assert ctypes.sizeof(acpi.GenericAddress) == 12
    assert (ctypes.sizeof(acpi.MadtLocalApic), ctypes.sizeof(acpi.MadtIoApic)) == (8, 12)
    assert ctypes.sizeof(boot.HvmStartInfo) == 56
    assert (ctypes.sizeof(boot.HvmModlistEntry), ctypes.sizeof(boot.HvmMemmapTableEntry)) == (32, 24)
