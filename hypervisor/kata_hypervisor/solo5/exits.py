"""Why the processor left the guest, and what is done about it.

Source: Linux' Documentation/virt/kvm/api.rst, 5. Runs on the processor's thread.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping

from kata_hypervisor.kvm import abi as kvm
from kata_hypervisor.solo5.hypercalls import End, Guest, call

WORD = 4


def _port(guest: Guest, run: kvm.KvmRun, page: mmap.mmap) -> End | None:
    io = run.io
    if io.direction != kvm.KVM_EXIT_IO_OUT or io.size != WORD or io.count != 1:
        return End(f"accessed port {io.port:#x} in a way that is no call: a call writes 32 bits, once")
    start = io.data_offset
    return call(guest, io.port, int.from_bytes(page[start : start + WORD], "little"))


def _memory(guest: Guest, run: kvm.KvmRun, page: mmap.mmap) -> End:
    access = run.mmio
    what = "wrote to" if access.is_write else "read"
    return End(f"{what} address {access.phys_addr:#x}, which it must not")


def _halt(guest: Guest, run: kvm.KvmRun, page: mmap.mmap) -> End:
    return End("halted its processor for good, instead of calling halt")


def _triple_fault(guest: Guest, run: kvm.KvmRun, page: mmap.mmap) -> End:
    return End("crashed with a triple fault")


def _entry_failed(guest: Guest, run: kvm.KvmRun, page: mmap.mmap) -> End:
    reason = run.fail_entry.hardware_entry_failure_reason
    return End(f"was refused by the host's processor: hardware reason {reason:#x}")


def _internal_error(guest: Guest, run: kvm.KvmRun, page: mmap.mmap) -> End:
    if run.internal.suberror == kvm.KVM_INTERNAL_ERROR_EMULATION:
        return End("executed an instruction that this KVM cannot emulate: kata-ctl check shows what it can")
    return End(f"was given up by KVM: internal error {run.internal.suberror}")


HANDLERS: Mapping[int, Callable[[Guest, kvm.KvmRun, mmap.mmap], End | None]] = {
    kvm.KVM_EXIT_IO: _port,
    kvm.KVM_EXIT_MMIO: _memory,
    kvm.KVM_EXIT_HLT: _halt,
    kvm.KVM_EXIT_SHUTDOWN: _triple_fault,
    kvm.KVM_EXIT_FAIL_ENTRY: _entry_failed,
    kvm.KVM_EXIT_INTERNAL_ERROR: _internal_error,
}


def handle(guest: Guest, run: kvm.KvmRun, page: mmap.mmap) -> End | None:
    """Handle an exit; a reason that nobody expects ends the guest."""
    handler = HANDLERS.get(run.exit_reason)
    if handler is None:
        return End(f"left its processor with KVM's exit reason {run.exit_reason}, which it cannot have")
    return handler(guest, run, page)
