"""The register file against drivers on the path and off it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.dragonball.virtio.device import VERSION_1, QueueSetup
from mmio_driver import ACKNOWLEDGE, FEATURE, INTERRUPT_STATUS, STATUS, Driver

PATH = (1, 3, 0xB, 0xF)


def test_what_a_driver_finds() -> None:
    driver = Driver()
    assert [driver.read(offset) for offset in (0, 4, 8)] == [0x74726976, 2, 2]
    seen = 0
    for page in (0, 1, 2):
        driver.write(0x14, page)
        seen |= driver.read(0x10) << 32 * page
    assert seen == VERSION_1 | FEATURE
    assert [driver.read(offset) for offset in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFFFFFF] * 4
    driver.write(0x30, 1)
    assert (driver.read(0x34), driver.read(0x44)) == (8, 0)
    driver.write(0x30, 2)
    assert (driver.read(0x34), driver.read(0x44)) == (0, 0)


def test_the_path_to_a_running_device() -> None:
    driver = Driver()
    driver.negotiate(VERSION_1)
    driver.set_queue(1, 4, 0x1_2345_6000)
    assert driver.read(0x44) == 1
    driver.write(STATUS, 0xF)
    setup = QueueSetup(1, 4, 0x1_2345_6000, 0x1_2345_7000, 0x1_2345_8000)
    assert driver.device.calls == [(VERSION_1, [setup])]
    assert driver.read(STATUS) == 0xF
    driver.write(STATUS, 0)
    assert driver.device.calls[1:] == ["reset"]
    assert driver.read(STATUS) == 0
    driver.write(0x30, 1)
    assert driver.read(0x44) == 0


@pytest.mark.parametrize("features", [0, FEATURE, VERSION_1 | 1 << 40, VERSION_1 | FEATURE << 1])
def test_features_that_were_not_offered_are_not_ok(features: int) -> None:
    driver = Driver()
    driver.negotiate(features)
    assert driver.read(STATUS) == 3
    driver.write(STATUS, 0xF)
    assert driver.read(STATUS) == 3
    assert driver.device.calls == []


@pytest.mark.parametrize("value", [2, 3, 4, 0xB, 0xF, 0x10, 0xFFFFFF00])
def test_nobody_skips_a_step(value: int) -> None:
    driver = Driver()
    driver.write(STATUS, value & ~0x80)
    assert driver.read(STATUS) == 0


def test_a_driver_may_give_up() -> None:
    driver = Driver()
    driver.write(STATUS, 1)
    driver.write(STATUS, 0x81)
    assert driver.read(STATUS) == 0x81
    driver.write(STATUS, 3)
    assert driver.read(STATUS) == 0x81


def test_a_device_that_fails_asks_for_a_reset() -> None:
    driver = Driver(fails=True)
    driver.negotiate(VERSION_1)
    generation = driver.read(0xFC)
    driver.write(STATUS, 0xF)
    assert driver.read(STATUS) == 0x4F
    assert (driver.read(INTERRUPT_STATUS), driver.pulses) == (3, 1)
    assert driver.read(0xFC) == generation + 1
    driver.write(STATUS, 0)
    assert driver.read(STATUS) == 0


def test_an_interrupt_always_says_that_buffers_were_used_and_a_change_until_it_is_acknowledged() -> None:
    driver = Driver()
    driver.registers.used()
    assert (driver.read(INTERRUPT_STATUS), driver.pulses) == (1, 1)
    driver.registers.configuration_changed()
    assert (driver.read(INTERRUPT_STATUS), driver.pulses) == (3, 2)
    driver.write(ACKNOWLEDGE, 1)
    assert driver.read(INTERRUPT_STATUS) == 3
    driver.write(ACKNOWLEDGE, 3)
    assert driver.read(INTERRUPT_STATUS) == 1


@pytest.mark.parametrize("size", [0, 3, 17, 32, 0x10008])
def test_a_queue_keeps_its_size_when_another_is_not_possible(size: int) -> None:
    driver = Driver()
    driver.negotiate(VERSION_1)
    driver.set_queue(0, size, 0x1000)
    driver.write(STATUS, 0xF)
    assert driver.device.calls == [(VERSION_1, [QueueSetup(0, 16, 0x1000, 0x2000, 0x3000)])]


def test_what_changes_by_itself_is_shown_too() -> None:
    driver = Driver()
    driver.registers.used()
    driver.device.configuration = b"changed"
    driver.registers.configuration_changed()
    driver.registers.needs_reset()
    assert driver.page == driver.read_all()
    assert driver.read(STATUS) == 0x40


def test_a_queue_that_is_ready_stays_where_it_is() -> None:
    driver = Driver()
    driver.negotiate(VERSION_1)
    driver.set_queue(0, 8, 0x1000)
    driver.set_queue(0, 4, 0x5000)
    driver.write(STATUS, 0xF)
    driver.write(0x44, 0)
    driver.set_queue(0, 2, 0x9000)
    assert driver.device.calls == [(VERSION_1, [QueueSetup(0, 8, 0x1000, 0x2000, 0x3000)])]


def test_the_configuration_space_ends_in_zeros() -> None:
    registers = Driver().registers
    assert registers.read_memory(0x100, 8) == b"config\0\0"
    assert registers.read_memory(0x103, 1) == b"f"
    assert registers.read_memory(0xFFC, 4) == bytes(4)


def test_the_configuration_is_written_by_a_driver_only() -> None:
    driver = Driver()
    driver.registers.write_memory(0x104, b"x")
    driver.negotiate(VERSION_1)
    driver.registers.write_memory(0x104, b"y")
    assert driver.device.calls == [(4, b"y")]


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 8), (2, 4), (1, 2), (0xFE, 4)])
def test_an_access_of_an_odd_width_reads_zeros_and_writes_nothing(offset: int, size: int) -> None:
    driver = Driver()
    assert driver.registers.read_memory(offset, size) == bytes(size)
    driver.registers.write_memory(0x70, b"\x01\x00")
    driver.registers.write_memory(0x70, b"\x01" + bytes(7))
    assert driver.read(STATUS) == 0


offsets = st.sampled_from(range(0, 0x104, 4)) | st.integers(0, 0xFFF)
values = st.sampled_from([0, 1, 2, 3, 8, 0xB, 0xF, 16]) | st.integers(0, 2**32 - 1)
accesses = st.lists(st.tuples(st.booleans(), offsets, values, st.sampled_from([1, 2, 4, 8])), max_size=60)


@given(st.booleans(), accesses)
def test_whatever_a_driver_does(on_path: bool, steps: list[tuple[bool, int, int, int]]) -> None:
    driver = Driver()
    if on_path:
        driver.negotiate(VERSION_1)
        driver.set_queue(0, 8, 0x1000)
    for reads, offset, value, size in steps:
        if reads:
            assert len(driver.registers.read_memory(offset, size)) == size
        else:
            driver.registers.write_memory(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        assert driver.read(STATUS) & ~0xC0 in (0, *PATH)
        assert driver.page == driver.read_all()
    for call in driver.device.calls:
        if isinstance(call, tuple) and isinstance(call[1], list):
            assert not call[0] & ~driver.device.features
            assert all(0 < setup.size <= 16 for setup in call[1])
