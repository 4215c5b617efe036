"""The in-process machine with guests of a few instructions, on whatever KVM this host has."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_hypervisor.dragonball import layout
from kata_hypervisor.dragonball.machine import Board, Machine
from kata_hypervisor.dragonball.virtio.block import Block, Medium
from kata_hypervisor.dragonball.virtio.mmio import Register, Registers
from kata_hypervisor.kvm.probe import probe_kvm
from kata_hypervisor.kvm.vcpus import accept_kicks
from patience import PATIENCE
from tiny_guest import HALT_FOREVER, SPIN, kernel, load_and_say, out_byte, read_and_say, say, store

pytestmark = pytest.mark.integration

MEMORY = 16 << 20
POWER_OFF = out_byte(layout.SLEEP_CONTROL, 5 << 2 | 1 << 5)
TRIPLE_FAULT = bytes.fromhex("0f 01 1c 25 00 05 00 00 0f 0b")  # lidt [0x500]; ud2


class Guest:
    """A machine, what it prints, and how it ends."""

    def __init__(self, directory: Path, vcpus: int = 1) -> None:
        self.output = b""
        self.ended: queue.Queue[str] = queue.Queue()
        self.directory = directory
        self.machine = Machine(Board(vcpus, MEMORY), self._print, self.ended.put)

    def _print(self, data: bytes) -> None:
        self.output += data

    def load(self, code: bytes, *, pvh: bool = False) -> None:
        path = self.directory / "kernel"
        path.write_bytes(kernel(code, pvh=pvh))
        self.machine.load(path, None, "")

    def run(self, code: bytes, *, pvh: bool = False) -> str:
        self.load(code, pvh=pvh)
        self.machine.processors.release()
        return self.ended.get(timeout=PATIENCE)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A machine of one processor; leaves no thread and no descriptor."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/kvm")
    accept_kicks()  # for good: a kick may reach a thread that was joined and has not yet ended
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    guest = Guest(tmp_path)
    yield guest
    guest.machine.close()
    guest.machine.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)


@pytest.mark.parametrize("pvh", [False, True])
def test_a_guest_prints_and_powers_off(guest: Guest, pvh: bool) -> None:
    assert guest.run(say(b"hello\n") + POWER_OFF + SPIN, pvh=pvh) == "it powered off"
    assert guest.output == b"hello\n"


def test_a_guest_resets(guest: Guest) -> None:
    assert guest.run(out_byte(0x64, 0xFE) + SPIN) == "it reset"


def test_a_triple_fault_ends_the_guest(guest: Guest) -> None:
    reason = guest.run(say(b"x\n") + TRIPLE_FAULT)
    assert reason in ("it crashed with a triple fault", "KVM could not emulate one of its instructions")
    assert guest.output == b"x\n"


def test_nobody_answers_where_nobody_is(guest: Guest) -> None:
    nowhere = layout.MMIO_GAP + 0x100000
    code = store(nowhere, 1) + load_and_say(nowhere) + out_byte(0x1234, 7) + say(b"\n") + POWER_OFF
    assert guest.run(code, pvh=True) == "it powered off"
    assert guest.output == b"\xff\n"


def test_a_virtio_device_shows_its_mark(guest: Guest) -> None:
    descriptor = os.memfd_create("disk", os.MFD_CLOEXEC)
    guest.machine.add_device(Block(Medium(descriptor, 512, read_only=True)))
    code = load_and_say(layout.VIRTIO) + load_and_say(layout.VIRTIO + 8) + say(b"\n") + POWER_OFF
    assert guest.run(code, pvh=True) == "it powered off"
    assert guest.output == b"v\x02\n"


@pytest.mark.rig
def test_an_interrupt_costs_no_exit_to_us(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    result = probe_kvm()
    if not result.runs_unmodified_guests:
        pytest.skip(f"{result.reason}, and so has exits of its own: run make test-rig")
    offsets: list[int] = []
    monkeypatch.setattr(Registers, "read_memory", lambda self, offset, size: offsets.append(offset))
    monkeypatch.setattr(Registers, "write_memory", lambda self, offset, data: offsets.append(offset))
    guest.machine.add_device(Block(Medium(os.memfd_create("disk", os.MFD_CLOEXEC), 512, read_only=True)))
    at = layout.VIRTIO
    interrupt = load_and_say(at + Register.INTERRUPT_STATUS) + store(at + Register.INTERRUPT_ACKNOWLEDGE, 1)
    other = store(at + Register.INTERRUPT_ACKNOWLEDGE, 2) + store(at, 7)
    assert guest.run(interrupt * 2 + other + say(b"\n") + POWER_OFF, pvh=True) == "it powered off"
    assert guest.output == b"\x01\x01\n"
    assert offsets == [Register.INTERRUPT_ACKNOWLEDGE, 0]


def test_a_storm_of_notifications_to_a_device_without_a_driver(guest: Guest) -> None:
    descriptor = os.memfd_create("disk", os.MFD_CLOEXEC)
    guest.machine.add_device(Block(Medium(descriptor, 512, read_only=True)))
    storm = b"".join(store(layout.VIRTIO + 0x50, number % 3) for number in range(500))
    assert guest.run(storm + say(b"done\n") + POWER_OFF, pvh=True) == "it powered off"
    assert guest.output == b"done\n"


def test_a_slots_state_is_read_at_any_width_and_never_written(guest: Guest) -> None:
    empty, full = guest.machine.add_slot(Block()), guest.machine.add_slot(Block())
    guest.machine.states.show(full.number)
    ports = (layout.SLOTS + empty.number, layout.SLOTS + full.number, layout.SLOTS + 2)
    writes = b"".join(out_byte(port, 0xFF) for port in ports)
    reads = b"".join(read_and_say(port, size) for port in ports for size in (1, 2, 4))
    assert guest.run(writes + reads + say(b"\n") + POWER_OFF, pvh=True) == "it powered off"
    assert guest.output == b"\0\0\0\x0f\x0f\x0f\xff\xff\xff\n"


def test_an_empty_slot_is_a_harmless_device(guest: Guest) -> None:
    guest.machine.add_slot(Block())
    storm = b"".join(store(layout.VIRTIO + 0x50, number % 3) for number in range(100))
    status = b"".join(store(layout.VIRTIO + 0x70, value) for value in (1, 3, 11, 15, 0x80, 0))
    capacity = load_and_say(layout.VIRTIO + 0x100)
    assert guest.run(storm + status + capacity + say(b"\n") + POWER_OFF, pvh=True) == "it powered off"
    assert guest.output == b"\0\n"


def test_a_guest_that_halts_for_good_can_be_stopped(guest: Guest) -> None:
    guest.load(say(b"halting\n") + HALT_FOREVER)
    guest.machine.processors.release()
    guest.machine.close()
    assert guest.ended.get(timeout=PATIENCE) == "it was stopped"


def test_a_guest_that_spins_is_held_and_released(guest: Guest) -> None:
    counter = 0x200000
    address = counter.to_bytes(8, "little")
    # mov rax, counter; inc dword [rax]; jmp to it
    guest.load(b"\x48\xb8" + address + b"\xff\x00\xeb\xfc")
    processors = guest.machine.processors

    def count() -> int:
        return int.from_bytes(guest.machine.memory.read(counter, 4), "little")

    def goes_on() -> bool:
        before, limit = count(), threading.Event()
        for _ in range(6000):
            if count() != before:
                return True
            limit.wait(0.01)
        return False

    processors.release()
    for _ in range(5):
        assert goes_on()
        processors.hold()
        held = count()
        assert [count() for _ in range(1000)] == [held] * 1000
        processors.release()
    assert goes_on()


def test_the_filter_comes_first_on_every_thread(tmp_path: Path, guest: Guest) -> None:
    guest.load(say(b"run\n") + POWER_OFF)
    order: list[object] = []
    guest.machine.processors.confine(lambda: order.append((threading.current_thread().name, guest.output)))
    assert order == [("vcpu0", b"")]
    guest.machine.processors.release()
    assert guest.ended.get(timeout=PATIENCE) == "it powered off"


def test_a_filter_that_fails_is_told_to_the_caller(guest: Guest) -> None:
    guest.load(say(b"run\n"))

    def fail() -> None:
        raise OSError("no filter")

    with pytest.raises(OSError, match="no filter"):
        guest.machine.processors.confine(fail)
    assert guest.output == b""


def test_a_bug_in_a_device_ends_the_guest_with_a_reason(guest: Guest) -> None:
    def fail(port: int, value: int, size: int) -> None:
        raise ZeroDivisionError("bug")

    guest.machine.serial.write_port = fail  # type: ignore[method-assign]
    assert guest.run(say(b"x")) == "the thread of its vCPU failed: ZeroDivisionError: bug"


def test_other_processors_wait_for_the_first(tmp_path: Path, guest: Guest) -> None:
    several = Guest(tmp_path, vcpus=4)
    try:
        assert several.run(say(b"one\n") + POWER_OFF) == "it powered off"
        assert several.output == b"one\n"
    finally:
        several.machine.close()
