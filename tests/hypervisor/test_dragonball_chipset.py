"""The devices that every PC has, the buses that lead to them, and the table of exits."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.dragonball import exits
from kata_hypervisor.dragonball.bus import Bus
from kata_hypervisor.dragonball.chipset import Clock, KeyboardController, SleepControl
from kata_hypervisor.dragonball.serial import SerialPort
from kata_hypervisor.kvm import abi

COM1 = 0x3F8
DATA, ENABLE, IDENTITY, LINE, MODEM, LINE_STATUS, MODEM_STATUS, SCRATCH = range(COM1, COM1 + 8)


class Serial:
    """A port, what it printed, and how often it interrupted."""

    def __init__(self) -> None:
        self.printed: list[bytes] = []
        self.interrupts = 0
        self.port = SerialPort(self.printed.append, self._interrupt)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def write(self, port: int, value: int) -> None:
        self.port.write_port(port, value, 1)

    def read(self, port: int) -> int:
        return self.port.read_port(port, 1)


@pytest.fixture
def serial() -> Serial:
    """A port after a reset."""
    return Serial()


def test_lines_are_printed_whole(serial: Serial) -> None:
    for byte in b"one\ntwo":
        assert serial.read(LINE_STATUS) & 0x60 == 0x60
        serial.write(DATA, byte)
    assert serial.printed == [b"one\n"]
    serial.port.flush()
    serial.port.flush()
    assert serial.printed == [b"one\n", b"two"]
    for _ in range(600):
        serial.write(DATA, 0x78)
    assert serial.printed[2:] == [b"x" * 512]
    assert serial.interrupts == 0


def test_the_divisor_is_behind_the_data(serial: Serial) -> None:
    serial.write(LINE, 0x80)
    serial.write(DATA, 1)
    serial.write(ENABLE, 2)
    assert (serial.read(DATA), serial.read(ENABLE)) == (1, 2)
    serial.write(LINE, 3)
    assert (serial.read(DATA), serial.read(ENABLE), serial.printed) == (0, 0, [])


def test_it_is_found_to_be_a_16550a(serial: Serial) -> None:
    serial.write(ENABLE, 0xFF)
    assert serial.read(ENABLE) == 0xF
    serial.write(IDENTITY, 1)
    assert serial.read(IDENTITY) & 0xC0 == 0xC0
    serial.write(SCRATCH, 0xA5)
    assert serial.read(SCRATCH) == 0xA5
    serial.write(MODEM, 0x1A)  # loop back: OUT2 and request to send are seen as carrier and clear to send
    assert serial.read(MODEM_STATUS) & 0xF0 == 0x90
    serial.write(DATA, 0x42)
    assert (serial.read(LINE_STATUS) & 1, serial.read(DATA), serial.read(LINE_STATUS) & 1) == (1, 0x42, 0)
    assert serial.printed == []


def test_an_empty_transmitter_interrupts_where_that_is_wanted(serial: Serial) -> None:
    serial.write(ENABLE, 2)
    assert serial.interrupts == 1
    assert (serial.read(IDENTITY), serial.read(IDENTITY)) == (2, 1)
    serial.write(DATA, 0x78)
    assert serial.interrupts == 2
    assert serial.read(IDENTITY) == 2


def test_the_clock_tells_the_hosts_time_in_bcd() -> None:
    clock = Clock(lambda: calendar.timegm((2024, 2, 29, 23, 58, 7)))

    def read(register: int) -> int:
        clock.write_port(0x70, register | 0x80, 1)
        return clock.read_port(0x71, 1)

    assert [read(register) for register in (0, 2, 4, 6, 7, 8, 9, 0x32)] == [
        *(0x07, 0x58, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20)
    ]
    assert read(10) & 0x80 == 0
    assert read(11) & 0x06 == 0x02
    assert read(13) == 0x80
    assert read(0x40) == 0
    assert clock.read_port(0x70, 1) == 0x40


def test_reset_and_power_off() -> None:
    calls: list[str] = []
    keyboard = KeyboardController(lambda: calls.append("reset"))
    sleep = SleepControl(lambda: calls.append("off"))
    for value in (0, 0xFF, 0xD1, 0xFE):
        keyboard.write_port(0x64, value, 1)
    for port, value in ((0x600, 0x20), (0x600, 0x14), (0x601, 0x34), (0x600, 0x34)):
        sleep.write_port(port, value, 1)
    assert calls == ["reset", "off"]
    assert (keyboard.read_port(0x64, 1), sleep.read_port(0x601, 1)) == (0, 0)


class Remembering:
    """A device of either kind."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def read_port(self, port: int, size: int) -> int:
        return 0x1_2345_6789

    def write_port(self, port: int, value: int, size: int) -> None:
        self.calls.append((port, value, size))

    def read_memory(self, offset: int, size: int) -> bytes:
        return bytes(range(offset & 0xFF, (offset & 0xFF) + size))

    def write_memory(self, offset: int, data: bytes) -> None:
        self.calls.append((offset, data))


@pytest.fixture
def device() -> Remembering:
    """A device on both buses."""
    return Remembering()


@pytest.fixture
def bus(device: Remembering) -> Bus:
    """Two ports and a page lead to the device."""
    bus = Bus()
    bus.add_ports(0x10, 2, device)
    bus.add_page(0xC0000000, device)
    return bus


def test_the_bus_finds_who_answers(bus: Bus, device: Remembering) -> None:
    assert [bus.read_port(0x10, size) for size in (1, 2, 4)] == [b"\x89", b"\x89\x67", b"\x89\x67\x45\x23"]
    assert bus.read_memory(0xC0000008, 4) == b"\x08\x09\x0a\x0b"
    bus.write_port(0x11, b"\x01\x02")
    bus.write_memory(0xC0000FF8, b"12345678")
    assert device.calls == [(0x11, 0x201, 2), (0xFF8, b"12345678")]


@pytest.mark.parametrize("address", [0xBFFFFFFF, 0xC0000FFD, 0xC0001000, 2**64 - 1])
def test_nobody_answers_elsewhere_or_across_the_end(bus: Bus, device: Remembering, address: int) -> None:
    assert bus.read_memory(address, 4) == b"\xff" * 4
    bus.write_memory(address, b"1234")
    assert bus.read_port(0x12, 4) == b"\xff" * 4
    bus.write_port(0x12, b"1")
    assert device.calls == []


def exit_with(reason: int, **members: object) -> abi.KvmRun:
    """The state after an exit. members: "io.port" and such, with _ for the dot."""
    run = abi.KvmRun(exit_reason=reason)
    for name, value in members.items():
        member, _, field = name.partition("__")
        setattr(getattr(run, member), field, value)
    return run


def test_a_string_of_port_writes_and_reads(bus: Bus, device: Remembering) -> None:
    page = memoryview(bytearray(b"....ABCDEF.."))
    run = exit_with(
        abi.KVM_EXIT_IO, io__direction=1, io__size=2, io__port=0x10, io__count=3, io__data_offset=4
    )
    assert exits.handle(run, page, bus) is None
    assert device.calls == [(0x10, 0x4241, 2), (0x10, 0x4443, 2), (0x10, 0x4645, 2)]
    run.io.direction = 0
    assert exits.handle(run, page, bus) is None
    assert bytes(page) == b"...." + b"\x89\x67" * 3 + b".."


def test_an_access_to_device_memory(bus: Bus, device: Remembering) -> None:
    page = memoryview(bytearray(8))
    run = exit_with(abi.KVM_EXIT_MMIO, mmio__phys_addr=0xC0000010, mmio__len=4)
    assert exits.handle(run, page, bus) is None
    assert bytes(run.mmio.data) == b"\x10\x11\x12\x13\0\0\0\0"
    run.mmio.is_write = 1
    assert exits.handle(run, page, bus) is None
    assert device.calls == [(0x10, b"\x10\x11\x12\x13")]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (exit_with(abi.KVM_EXIT_INTR), None),
        (exit_with(abi.KVM_EXIT_HLT), "a processor halted for good"),
        (exit_with(abi.KVM_EXIT_SHUTDOWN), "it crashed with a triple fault"),
        (exit_with(abi.KVM_EXIT_INTERNAL_ERROR, internal__suberror=1), "KVM could not emulate"),
        (exit_with(abi.KVM_EXIT_INTERNAL_ERROR, internal__suberror=3), "KVM gave up: internal error 3"),
        (
            exit_with(abi.KVM_EXIT_FAIL_ENTRY, fail_entry__hardware_entry_failure_reason=33),
            "refused to run it: hardware reason 0x21",
        ),
        (exit_with(abi.KVM_EXIT_SYSTEM_EVENT, system_event__type=1), "it powered off"),
        (exit_with(abi.KVM_EXIT_SYSTEM_EVENT, system_event__type=2), "it reset"),
        (exit_with(abi.KVM_EXIT_SYSTEM_EVENT, system_event__type=9), "system event 9"),
        (exit_with(99), "KVM reported exit reason 99, which nobody asked for"),
    ],
)
def test_every_other_exit_says_how_the_guest_ended(bus: Bus, run: abi.KvmRun, reason: str | None) -> None:
    ended = exits.handle(run, memoryview(b""), bus)
    meant = ended is None or ended in ("it powered off", "it reset")
    assert isinstance(ended, exits.Crash) is not meant  # else its status would say that all was well
    assert ended is None if reason is None else reason in (ended or "")


@given(
    st.lists(st.tuples(st.integers(COM1, COM1 + 7), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4])))
)
def test_whatever_is_written_to_the_serial_port(writes: list[tuple[int, int, int]]) -> None:
    serial = Serial()
    for port, value, size in writes:
        serial.port.write_port(port, value, size)
        assert 0 <= serial.read(port) <= 0xFF
        assert serial.read(LINE_STATUS) & 0x60 == 0x60
    assert all(0 < len(part) <= 512 for part in serial.printed)
