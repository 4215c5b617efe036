"""The state of what all processors share and the kernel emulates: interrupt controllers, timer, clock."""

from __future__ import annotations

import fcntl
from ctypes import Structure, sizeof

from kata_hypervisor.dragonball.saved_state import Document, Fields, text_of
from kata_hypervisor.errors import SnapshotError
from kata_hypervisor.kvm import abi

IRQCHIPS = ("pic_master", "pic_slave", "ioapic")
"""KVM's three chips, by their number."""


def save(vm: int) -> Document:
    """Read the state. Raises SnapshotError."""
    state: Document = {}
    for number, name in enumerate(IRQCHIPS):
        state[name] = _read(vm, name, abi.KVM_GET_IRQCHIP, abi.KvmIrqchip(chip_id=number))
    state["pit"] = _read(vm, "pit", abi.KVM_GET_PIT2, abi.KvmPitState2())
    clock = abi.KvmClockData()
    _read(vm, "clock", abi.KVM_GET_CLOCK, clock)
    return state | {"clock": clock.clock}


def restore(vm: int, state: Fields) -> None:
    """Set the state, once the processors have theirs. Raises SnapshotError."""
    for number, name in enumerate(IRQCHIPS):
        chip = abi.KvmIrqchip.from_buffer_copy(state.content(name, sizeof(abi.KvmIrqchip)))
        chip.chip_id = number
        _write(vm, name, abi.KVM_SET_IRQCHIP, chip)
    pit = abi.KvmPitState2.from_buffer_copy(state.content("pit", sizeof(abi.KvmPitState2)))
    _write(vm, "pit", abi.KVM_SET_PIT2, pit)
    # Without flags: the guest's time goes on where it stood.
    clock = abi.KvmClockData(clock=state.integer("clock", (1 << 63) - 1))
    _write(vm, "clock", abi.KVM_SET_CLOCK, clock)


def _read(vm: int, name: str, request: int, value: Structure) -> str:
    try:
        fcntl.ioctl(vm, request, value)
    except OSError as error:
        raise SnapshotError(f"KVM does not return the machine's {name}: {error.strerror}") from error
    return text_of(bytes(value))


def _write(vm: int, name: str, request: int, value: Structure) -> None:
    try:
        fcntl.ioctl(vm, request, value)
    except OSError as error:
        raise SnapshotError(f"KVM refuses the machine's {name}: {error.strerror}") from error
