"""A virtual processor's state while it is stopped: read for a snapshot, and given to another one.

The order matters. mp_state comes first, because KVM_GET_MP_STATE may still change other state. sregs say
where the local APIC is, so it comes after them; and the deadline timer, which is a model-specific register,
after the APIC and after the time stamp counter, which it is compared with. Pending events come last: what is
set before may clear them. Sources: Linux' Documentation/virt/kvm/api.rst; the order of Firecracker's vcpu.rs.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from ctypes import Structure, sizeof
from typing import NamedTuple

from kata_hypervisor.dragonball.saved_state import Document, Fields, text_of
from kata_hypervisor.errors import SnapshotError
from kata_hypervisor.kvm import abi

MOST_INDICES = 1 << 10
WORD, LONG = (1 << 32) - 1, (1 << 64) - 1

IA32_TSC, IA32_TSC_DEADLINE = 0x10, 0x6E0
FASTEST_TSC = 1 << 24
"""kHz that nothing has; what is read must be below."""


class Part(NamedTuple):
    """One structure of the state, with the requests that read it and set it."""

    name: str
    structure: type[Structure]
    get: int
    set: int


BEFORE_REGISTERS = (
    Part("mp_state", abi.KvmMpState, abi.KVM_GET_MP_STATE, abi.KVM_SET_MP_STATE),
    Part("regs", abi.KvmRegs, abi.KVM_GET_REGS, abi.KVM_SET_REGS),
    Part("sregs", abi.KvmSregs, abi.KVM_GET_SREGS, abi.KVM_SET_SREGS),
    Part("xsave", abi.KvmXsave, abi.KVM_GET_XSAVE, abi.KVM_SET_XSAVE),
    Part("xcrs", abi.KvmXcrs, abi.KVM_GET_XCRS, abi.KVM_SET_XCRS),
    Part("debugregs", abi.KvmDebugregs, abi.KVM_GET_DEBUGREGS, abi.KVM_SET_DEBUGREGS),
    Part("lapic", abi.KvmLapicState, abi.KVM_GET_LAPIC, abi.KVM_SET_LAPIC),
)
EVENTS = Part("events", abi.KvmVcpuEvents, abi.KVM_GET_VCPU_EVENTS, abi.KVM_SET_VCPU_EVENTS)


def save(vcpu: int, indices: Sequence[int]) -> Document:
    """Read the state. indices: of the model-specific registers.

    Raises:
        SnapshotError: the host does not report a part of it.
    """
    state: Document = {part.name: text_of(bytes(_read(vcpu, part))) for part in BEFORE_REGISTERS}
    state["tsc_khz"] = fcntl.ioctl(vcpu, abi.KVM_GET_TSC_KHZ)
    state["msrs"] = with_a_deadline(read_registers(vcpu, indices))
    state[EVENTS.name] = text_of(bytes(_read(vcpu, EVENTS)))
    return state


def restore(vcpu: int, state: Fields) -> None:
    """Give a processor, which has its CPUID and has not run, a saved state.

    Raises:
        SnapshotError: the state is damaged, or the host's processor does not take it.
    """
    _set_frequency(vcpu, state.integer("tsc_khz", FASTEST_TSC))
    for part in BEFORE_REGISTERS:
        _write(vcpu, part, state)
    write_registers(vcpu, state.pairs("msrs", MOST_INDICES, (WORD, LONG)))
    _write(vcpu, EVENTS, state)


def read_registers(vcpu: int, indices: Sequence[int]) -> list[tuple[int, int]]:
    """Index and value of the model-specific registers that there are, in the order to set them in."""
    found: list[tuple[int, int]] = []
    left = sorted(indices, key=lambda index: (index == IA32_TSC_DEADLINE, index != IA32_TSC, index))
    while left:
        some = left[: abi.MAX_MSR_ENTRIES]
        table = _table([(index, 0) for index in some])
        count = fcntl.ioctl(vcpu, abi.KVM_GET_MSRS, table)
        found += [(entry.index, entry.data) for entry in table.entries[:count]]
        left = left[count if count == len(some) else count + 1 :]  # it stops at one that the guest has not
    return found


def with_a_deadline(registers: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The same, with a deadline of now where there is none.

    One that has just passed is gone from its register, and its interrupt may not be anywhere yet: the copy's
    timer would stand still for ever. One interrupt too many does no harm. (Firecracker does the same.)
    """
    now = dict(registers).get(IA32_TSC, 0)
    return [[index, now if index == IA32_TSC_DEADLINE and not value else value] for index, value in registers]


def write_registers(vcpu: int, values: Sequence[tuple[int, int]]) -> None:
    """Set model-specific registers, in this order.

    Raises:
        SnapshotError: KVM refuses one, which does not have this value already.
    """
    left = list(values)
    while left:
        some = left[: abi.MAX_MSR_ENTRIES]
        count = fcntl.ioctl(vcpu, abi.KVM_SET_MSRS, _table(some))
        if count < len(some):
            index, value = some[count]
            if read_registers(vcpu, [index]) != [(index, value)]:
                raise SnapshotError(f"KVM refuses {value:#x} for the model-specific register {index:#x}")
            count += 1
        left = left[count:]


def _table(values: Sequence[tuple[int, int]]) -> abi.KvmMsrs:
    table = abi.KvmMsrs(nmsrs=len(values))
    for number, (index, data) in enumerate(values):
        table.entries[number] = abi.KvmMsrEntry(index=index, data=data)
    return table


def _set_frequency(vcpu: int, khz: int) -> None:
    here = fcntl.ioctl(vcpu, abi.KVM_GET_TSC_KHZ)
    if here == khz:
        return
    try:
        fcntl.ioctl(vcpu, abi.KVM_SET_TSC_KHZ, khz)
    except OSError as error:
        raise SnapshotError(
            f"its time stamp counter has {khz} kHz, this host's has {here} and cannot be scaled"
        ) from error


def _read(vcpu: int, part: Part) -> Structure:
    value = part.structure()
    try:
        fcntl.ioctl(vcpu, part.get, value)
    except OSError as error:
        raise SnapshotError(f"KVM does not return a vCPU's {part.name}: {error.strerror}") from error
    return value


def _write(vcpu: int, part: Part, state: Fields) -> None:
    value = part.structure.from_buffer_copy(state.content(part.name, sizeof(part.structure)))
    try:
        fcntl.ioctl(vcpu, part.set, value)
    except OSError as error:
        raise SnapshotError(f"KVM refuses a vCPU's {part.name}: {error.strerror}") from error
