"""Why a virtual processor left the guest, and what is done about it: a table from reason to function.

Source: Linux' Documentation/virt/kvm/api.rst, 5. Runs on the vCPU's thread: no event loop, file or socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kata_hypervisor.dragonball.bus import Bus
from kata_hypervisor.kvm import abi


class Crash(str):
    """How a guest ended that did not mean to."""

    __slots__ = ()


Handler = Callable[[abi.KvmRun, memoryview, Bus], str | None]
"""Handles an exit: the processor's state, its page (where port data is) and the bus.

Returns None when the guest goes on, else one line that says how it ended.
"""

LARGEST_ACCESS = 8


def _port(run: abi.KvmRun, page: memoryview, bus: Bus) -> None:
    io = run.io
    port, size, start = io.port, io.size, io.data_offset
    outward = io.direction == abi.KVM_EXIT_IO_OUT
    for at in range(start, start + size * io.count, size):
        if outward:
            bus.write_port(port, bytes(page[at : at + size]))
        else:
            page[at : at + size] = bus.read_port(port, size)


def _memory(run: abi.KvmRun, page: memoryview, bus: Bus) -> None:
    access = run.mmio
    size = min(access.len, LARGEST_ACCESS)
    if access.is_write:
        bus.write_memory(access.phys_addr, bytes(access.data[:size]))
    else:
        access.data[:size] = bus.read_memory(access.phys_addr, size)


def _halt(run: abi.KvmRun, page: memoryview, bus: Bus) -> str:
    return Crash("a processor halted for good")


def _triple_fault(run: abi.KvmRun, page: memoryview, bus: Bus) -> str:
    return Crash("it crashed with a triple fault")


def _entry_failed(run: abi.KvmRun, page: memoryview, bus: Bus) -> str:
    reason = run.fail_entry.hardware_entry_failure_reason
    return Crash(f"the host's processor refused to run it: hardware reason {reason:#x}")


def _internal_error(run: abi.KvmRun, page: memoryview, bus: Bus) -> str:
    if run.internal.suberror == abi.KVM_INTERNAL_ERROR_EMULATION:
        return Crash("KVM could not emulate one of its instructions")
    return Crash(f"KVM gave up: internal error {run.internal.suberror}")


def _system_event(run: abi.KvmRun, page: memoryview, bus: Bus) -> str:
    kinds = {abi.KVM_SYSTEM_EVENT_SHUTDOWN: "it powered off", abi.KVM_SYSTEM_EVENT_RESET: "it reset"}
    return kinds.get(run.system_event.type, Crash(f"system event {run.system_event.type}"))


def _interrupted(run: abi.KvmRun, page: memoryview, bus: Bus) -> None:
    """A signal came; the loop looks at what is asked of it."""


HANDLERS: Mapping[int, Handler] = {
    abi.KVM_EXIT_IO: _port,
    abi.KVM_EXIT_MMIO: _memory,
    abi.KVM_EXIT_HLT: _halt,
    abi.KVM_EXIT_SHUTDOWN: _triple_fault,
    abi.KVM_EXIT_FAIL_ENTRY: _entry_failed,
    abi.KVM_EXIT_INTR: _interrupted,
    abi.KVM_EXIT_INTERNAL_ERROR: _internal_error,
    abi.KVM_EXIT_SYSTEM_EVENT: _system_event,
}


def handle(run: abi.KvmRun, page: memoryview, bus: Bus) -> str | None:
    """Handle the exit that the processor's state names; an unknown one ends the guest."""
    handler = HANDLERS.get(run.exit_reason)
    if handler is None:
        return Crash(f"KVM reported exit reason {run.exit_reason}, which nobody asked for")
    return handler(run, page, bus)
