"""A virtual machine with one vCPU in 64-bit mode that runs the trials; the body of the probe's own process.

Its only output is one line of JSON, an `Observation`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from kata_hypervisor.kvm import abi, guest

# Guest memory: the first 64 KiB, mapped one to one by one 2 MiB page.
MEMORY = 0x10000
GDT, PML4, PDPT, PAGES, CODE, STACK = 0x500, 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
GDT_ENTRIES = (0, 0xAF9B000000FFFF, 0xCF93000000FFFF, 0x8F8B000000FFFF)  # none, code, data, task state

PE, MP, ET, NE, PG = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 31
PAE, OSFXSR, OSXMMEXCPT = 1 << 5, 1 << 9, 1 << 10
LME, LMA = 1 << 8, 1 << 10

EXITS = {
    abi.KVM_EXIT_HLT: "KVM_EXIT_HLT",
    abi.KVM_EXIT_SHUTDOWN: "KVM_EXIT_SHUTDOWN, a triple fault",
    abi.KVM_EXIT_FAIL_ENTRY: "KVM_EXIT_FAIL_ENTRY",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened. results: each trial's result so far. end: how the guest ended, for messages.

    refused: why there was no guest at all, or None. emulates: whether KVM reported that it could not emulate.
    """

    results: tuple[int, ...] = ()
    end: str = ""
    refused: str | None = None
    emulates: bool = False


def observe(device: str) -> Observation:
    """Run the trials on a device. Never raises for what a device may do."""
    try:
        with ExitStack() as stack:
            return _run(device, stack)
    except OSError as error:
        return Observation(refused=_refusal(device, error))


PROCESSOR_TIME = 3.0
"""Seconds of it, a guest's included, after which SIGPROF ends the probe's process: it takes milliseconds."""
LIFETIME = 60
"""Seconds after which the kernel ends the probe's process, when nobody is left who would."""


def main() -> None:
    """Observe the device that is named on the command line, and print what happened."""
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_TIME)
    signal.setitimer(signal.ITIMER_REAL, LIFETIME)
    print(json.dumps(asdict(observe(sys.argv[1]))))


def _run(device: str, stack: ExitStack) -> Observation:
    kvm = stack.enter_context(_descriptor(os.open(device, os.O_RDWR | os.O_CLOEXEC)))
    version = fcntl.ioctl(kvm, abi.KVM_GET_API_VERSION)
    if version != abi.KVM_API_VERSION:
        return Observation(
            refused=f"{device} speaks version {version} of the KVM API, not {abi.KVM_API_VERSION}"
        )
    vm = stack.enter_context(_descriptor(fcntl.ioctl(kvm, abi.KVM_CREATE_VM)))
    memory = mmap.mmap(-1, MEMORY)
    _fill(memory)
    _give_memory(vm, memory)
    vcpu = stack.enter_context(_descriptor(fcntl.ioctl(vm, abi.KVM_CREATE_VCPU)))
    shared = mmap.mmap(vcpu, fcntl.ioctl(kvm, abi.KVM_GET_VCPU_MMAP_SIZE))
    _set_registers(kvm, vcpu)
    return _interpret(vcpu, shared)


def _interpret(vcpu: int, shared: mmap.mmap) -> Observation:
    results: list[int] = []
    while True:
        try:
            fcntl.ioctl(vcpu, abi.KVM_RUN)
        except OSError as error:
            return Observation(tuple(results), f"KVM_RUN failed: {error.strerror}")
        run = abi.KvmRun.from_buffer_copy(shared)
        if run.exit_reason == abi.KVM_EXIT_IO and run.io.direction == abi.KVM_EXIT_IO_OUT:
            results.append(
                int.from_bytes(shared[run.io.data_offset : run.io.data_offset + run.io.size], "little")
            )
        elif run.exit_reason == abi.KVM_EXIT_INTERNAL_ERROR:
            emulates = run.internal.suberror == abi.KVM_INTERNAL_ERROR_EMULATION
            why = "emulation failure" if emulates else f"suberror {run.internal.suberror}"
            return Observation(tuple(results), f"KVM_EXIT_INTERNAL_ERROR, {why}", emulates=emulates)
        else:
            return Observation(tuple(results), EXITS.get(run.exit_reason, f"exit reason {run.exit_reason}"))
        if len(results) > len(guest.TRIALS):
            return Observation(tuple(results), "more results than trials")


def _fill(memory: mmap.mmap) -> None:
    for offset, entries in ((GDT, GDT_ENTRIES), (PML4, (PDPT | 3,)), (PDPT, (PAGES | 3,)), (PAGES, (0x83,))):
        struct.pack_into(f"<{len(entries)}Q", memory, offset, *entries)
    code = guest.program()
    memory[CODE : CODE + len(code)] = code


def _give_memory(vm: int, memory: mmap.mmap) -> None:
    # SAFETY: the kernel keeps the address, not a reference; the mapping lives as long as the vCPU can run,
    # which is until `_run` returns.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = abi.KvmUserspaceMemoryRegion(memory_size=MEMORY, userspace_addr=address)
    fcntl.ioctl(vm, abi.KVM_SET_USER_MEMORY_REGION, region)


def _set_registers(kvm: int, vcpu: int) -> None:
    cpuid = abi.KvmCpuid2(nent=abi.MAX_CPUID_ENTRIES)
    fcntl.ioctl(kvm, abi.KVM_GET_SUPPORTED_CPUID, cpuid)
    fcntl.ioctl(vcpu, abi.KVM_SET_CPUID2, cpuid)
    sregs = abi.KvmSregs()
    fcntl.ioctl(vcpu, abi.KVM_GET_SREGS, sregs)
    sregs.cs = abi.KvmSegment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, l=1, g=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, abi.KvmSegment(limit=0xFFFFFFFF, selector=16, type=3, present=1, db=1, s=1, g=1))
    sregs.tr = abi.KvmSegment(limit=0xFFFFF, selector=24, type=11, present=1, g=1)
    sregs.gdt = abi.KvmDtable(base=GDT, limit=8 * len(GDT_ENTRIES) - 1)
    sregs.cr0, sregs.cr3, sregs.cr4 = PE | MP | ET | NE | PG, PML4, PAE | OSFXSR | OSXMMEXCPT
    sregs.efer = LME | LMA
    fcntl.ioctl(vcpu, abi.KVM_SET_SREGS, sregs)
    fcntl.ioctl(vcpu, abi.KVM_SET_REGS, abi.KvmRegs(rip=CODE, rsp=STACK, rflags=2))


@contextmanager
def _descriptor(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)


def _refusal(device: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"{device} does not exist: load kvm_intel or kvm_amd, or enable virtualization"
        case errno.EACCES | errno.EPERM:
            return f"cannot open {device}: {error.strerror}: run as root or as a member of group kvm"
        case errno.ENOTTY:
            return f"{device} is not a KVM device"
        case _:
            return f"cannot use {device}: {error.strerror}"
