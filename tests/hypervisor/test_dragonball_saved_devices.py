"""Devices that are stopped and saved, and devices that go on where others stopped."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interrupts import RecordedInterrupts
from kata_hypervisor.dragonball import cpuid
from kata_hypervisor.dragonball.memory import GuestMemory, data_of
from kata_hypervisor.dragonball.processor_state import IA32_TSC, IA32_TSC_DEADLINE, with_a_deadline
from kata_hypervisor.dragonball.saved_state import Fields, decode, encode
from kata_hypervisor.dragonball.virtio import vhost
from kata_hypervisor.dragonball.virtio.block import Block, Medium
from kata_hypervisor.dragonball.virtio.device import (
    EVENT_INDEX,
    VERSION_1,
    DeviceContext,
    DeviceError,
    QueueSetup,
)
from kata_hypervisor.dragonball.virtio.filesystem import FileSystem
from kata_hypervisor.dragonball.virtio.mmio import Registers
from kata_hypervisor.dragonball.virtio.network import Network
from kata_hypervisor.dragonball.virtio.queue import SplitQueue
from kata_hypervisor.dragonball.virtio.vsock import Socket
from kata_hypervisor.errors import SnapshotError
from kata_hypervisor.kvm.abi import KvmCpuid2, KvmCpuidEntry2
from mmio_driver import FEATURE, STATUS, Driver, FakeDevice
from virtqueue_driver import USED, VirtqueueDriver

MIB = 1 << 20


def running() -> Driver:
    """A driver and its device, which runs with two queues."""
    driver = Driver()
    driver.negotiate(VERSION_1 | FEATURE)
    driver.set_queue(0, 16, 0x10000)
    driver.set_queue(1, 4, 1 << 40)
    driver.write(STATUS, 0xF)
    return driver


# -- registers ---------------------------------------------------------------------------------------------


def test_another_device_goes_on_where_one_was_frozen() -> None:
    one, other = running(), Driver()
    one.registers.configuration_changed()
    state = one.registers.freeze()
    assert one.device.calls[-1] == "freeze"
    one.registers.thaw()
    assert one.device.calls[-1] == "thaw"
    other.registers.restore(decode(encode(state)))
    setups = [
        QueueSetup(0, 16, 0x10000, 0x11000, 0x12000),
        QueueSetup(1, 4, 1 << 40, (1 << 40) + 0x1000, (1 << 40) + 0x2000, 7),
    ]
    assert other.device.calls == [(VERSION_1 | FEATURE, setups), "awaken"]
    assert other.pulses == 1
    assert [other.read(offset) for offset in (0x60, STATUS, 0xFC)] == [3, 0xF, 1]


@pytest.mark.parametrize("steps", range(4))
def test_a_device_that_does_not_run_yet_is_not_started(steps: int) -> None:
    one, other = Driver(), Driver()
    for value in (1, 3)[:steps]:
        one.write(STATUS, value)
    if steps == 3:
        one.negotiate(VERSION_1)
    other.registers.restore(Fields(one.registers.freeze()))
    assert (other.device.calls, other.pulses) == ([], 0)
    assert other.read(STATUS) == one.read(STATUS)


def test_a_broken_device_stays_so() -> None:
    one, other = running(), Driver()
    one.registers.needs_reset()
    other.registers.restore(Fields(one.registers.freeze()))
    assert other.device.calls == []
    assert other.read(STATUS) == 0x4F


def test_a_device_that_refuses_is_a_template_that_is_refused() -> None:
    with pytest.raises(SnapshotError, match="a device does not go on: no"):
        Driver(fails=True).registers.restore(Fields(running().registers.freeze()))


def test_a_device_with_fewer_features_refuses() -> None:
    other = Driver()
    other.device.features = VERSION_1
    with pytest.raises(SnapshotError, match="a driver uses features 0x100000020, its device has 0x100000000"):
        other.registers.restore(Fields(running().registers.freeze()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 3}, "in another order"),
        ({"status": 5}, "status 0x5"),
        ({"status": 256}, "status is no number"),
        ({"queues": []}, "queues is no list of 2"),
        ({"pending": 4}, "pending"),
        ({"features": 1 << 64}, "features"),
    ],
)
def test_what_no_device_has_saved_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        Driver().registers.restore(Fields(running().registers.freeze() | change))


@given(st.integers(), st.sampled_from(["size", "ready", "descriptors", "available", "used", "position"]))
def test_a_queue_keeps_its_promises_or_is_refused(value: int, key: str) -> None:
    state, other = running().registers.freeze(), Driver()
    state["queues"][1][key] = value
    try:
        other.registers.restore(Fields(state))
    except SnapshotError:
        return
    _, setups = other.device.calls[0]
    assert all(0 < one.size <= FakeDevice.queue_sizes[one.index] for one in setups)


def test_a_notification_that_no_eventfd_takes_reaches_the_device() -> None:
    driver = running()
    driver.device.calls.clear()
    for queue in (0, 1, 2, 1 << 31):
        driver.write(0x50, queue)
    assert driver.device.calls == [("notified", 1)]
    driver.write(STATUS, 0)
    driver.write(0x50, 1)
    assert driver.device.calls[1:] == ["reset"]


# -- queues ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 5, 0xFFFE])
def test_a_queue_goes_on_at_its_position(start: int) -> None:
    driver = VirtqueueDriver()
    driver._offered = start
    driver.memory.write(USED + 2, struct.pack("<H", start))
    for _ in range(3):
        driver.offer([b"x"], [])
    setup = replace(driver.setup, size=8, position=start)
    queue = SplitQueue(driver.memory, setup, False)
    for _ in range(3):
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
    assert queue.pop() is None
    assert queue.position == start + 3 & 0xFFFF
    assert queue.wants_interrupt()


def test_a_thread_that_is_frozen_serves_nothing() -> None:
    driver, future, kick = VirtqueueDriver(), RecordedInterrupts(), os.eventfd(0)
    device = Block(Medium(-1, 0, read_only=True))
    device.connect(DeviceContext(driver.memory, [kick], -1, future))
    device.activate(VERSION_1, [driver.setup])
    assert device.freeze() == {0: 0}
    driver.offer([struct.pack("<IIQ", 8, 0, 0)], [20, 1])
    os.eventfd_write(kick, 1)
    assert driver.used == []
    device.thaw()
    assert future.next() == "used"
    device.awaken()
    assert future.next() == "configuration"
    assert device.freeze() == {0: 1}
    device.thaw()
    device.close()
    os.close(kick)


# -- what the kernel and virtiofsd serve -------------------------------------------------------------------


class Kernel:
    """Takes every request, and says that five requests were served of each queue."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, bytes | int]] = []
        monkeypatch.setattr(fcntl, "ioctl", self._ioctl)

    def _ioctl(self, descriptor: int, request: int, argument: Any = 0) -> int:
        if request == vhost.VHOST_GET_FEATURES:
            argument.value = 2**64 - 1
        if request == vhost.VHOST_GET_VRING_BASE:
            argument.num = 5
        self.asked.append((request, argument if isinstance(argument, int) else bytes(argument)))
        return 0

    def running(self) -> list[int]:
        """What vhost-vsock was asked: whether it runs."""
        found = [bytes(value)[0] for name, value in self.asked if name == vhost.VHOST_VSOCK_SET_RUNNING]
        self.asked.clear()
        return found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """See Kernel."""
    return Kernel(monkeypatch)


@pytest.fixture
def notify_fds() -> Iterator[list[int]]:
    """The eventfds of two queues."""
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    yield events
    for event in events:
        os.close(event)


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_INDEX])
def test_a_copys_vsock_waits_until_the_driver_knows_its_id(
    kernel: Kernel, notify_fds: list[int], features: int
) -> None:
    driver = VirtqueueDriver(index=2)
    others = [QueueSetup(index, 8, 0x8000, 0x9000, 0xA000, 5) for index in range(2)]
    (address,) = driver.offer([], [8])
    device = Socket(os.memfd_create("vsock"), 42)
    device.connect(DeviceContext(driver.memory, notify_fds, 80, RecordedInterrupts()))
    device.activate(features, [*others, driver.setup])
    bases = [value for name, value in kernel.asked if name == vhost.VHOST_SET_VRING_BASE]
    assert bases == [struct.pack("<II", index, 5) for index in range(2)]
    driver.memory.write(address, b"\xff" * 8)
    device.awaken()
    assert kernel.running() == [1, 0]
    assert driver.used == [(0, 4)]
    assert driver.memory.read(address, 8) == bytes(4) + b"\xff" * 4
    if features & EVENT_INDEX:
        assert driver.memory.read(USED + 4 + 8 * 8, 2) == b"\1\0"  # tell me of the second buffer
    device.notified(2)
    assert kernel.running() == [1]
    assert [os.eventfd_read(kick) for kick in notify_fds] == [1, 1]
    device.notified(2)
    assert kernel.running() == []
    assert device.freeze() == {0: 5, 1: 5, 2: 1}
    device.thaw()
    assert kernel.running() == [0, 1]
    device.reset()
    device.notified(2)
    assert device.freeze() == {}
    device.thaw()
    assert kernel.running() == [0]
    device.close()


def test_a_vsock_driver_without_a_buffer_for_events_is_refused(kernel: Kernel, notify_fds: list[int]) -> None:
    driver = VirtqueueDriver(index=2)
    device = Socket(os.memfd_create("vsock"), 42)
    device.connect(DeviceContext(driver.memory, notify_fds, 80, RecordedInterrupts()))
    device.activate(VERSION_1, [driver.setup])
    with pytest.raises(DeviceError, match="no room for the news"):
        device.awaken()
    device.close()


def test_a_network_is_let_go_of_and_taken_again(kernel: Kernel, notify_fds: list[int]) -> None:
    memory = GuestMemory.allocate(2 * MIB)
    device = Network(os.memfd_create("tap"), os.memfd_create("vhost"), bytes(6))
    device.connect(DeviceContext(memory, notify_fds, 80, RecordedInterrupts()))
    assert device.freeze() == {}
    device.thaw()
    device.activate(VERSION_1, [QueueSetup(index, 8, 0x1000, 0x2000, 0x3000) for index in range(2)])
    kernel.asked.clear()
    assert device.freeze() == {0: 5, 1: 5}
    backends = [value for name, value in kernel.asked if name == vhost.VHOST_NET_SET_BACKEND]
    assert backends == [struct.pack("<Ii", index, -1) for index in range(2)]
    device.thaw()
    assert kernel.asked[-1] == (vhost.VHOST_NET_SET_BACKEND, struct.pack("<Ii", 1, device._tap))
    device.close()
    memory.close()


def test_a_file_system_that_nobody_serves_can_be_saved() -> None:
    driver = VirtqueueDriver()
    device = FileSystem(None, "tag", 8)
    device.connect(DeviceContext(driver.memory, [], 80, RecordedInterrupts()))
    device.activate(VERSION_1, [driver.setup])
    assert device.freeze() == {}
    device.thaw()
    device.reset()
    device.close()


def test_a_file_system_in_use_cannot_be_saved() -> None:
    device = FileSystem(None, "tag", 8)
    device._running = [0, 1]
    with pytest.raises(SnapshotError, match="virtiofsd cannot be saved"):
        device.freeze()


def test_a_driver_that_is_never_saved_half() -> None:
    """The registers thaw what they froze, whatever failed."""
    registers = Registers(FileSystem(None, "tag", 8), lambda: None, lambda function: function())
    registers.freeze()
    registers.thaw()


# -- memory and processor ----------------------------------------------------------------------------------


@pytest.fixture
def saved() -> Iterator[int]:
    """The file of a memory that has a word at 1 MiB and one at 3 MiB."""
    memory = GuestMemory.allocate(4 * MIB)
    memory.write(MIB, b"word")
    memory.write(3 * MIB + 70000, b"end")
    file = os.memfd_create("saved")
    os.ftruncate(file, 4 * MIB)
    memory.save(file)
    memory.close()
    yield file
    os.close(file)


def test_a_saved_memory_has_nothing_where_nothing_was(saved: int) -> None:
    pieces = list(data_of(saved, 4 * MIB))
    assert pieces[0][0] == MIB
    assert sum(end - start for start, end in pieces) == 2 << 16


@pytest.mark.parametrize("private", [True, False])
def test_a_memory_begins_with_what_was_saved_and_changes_nothing_of_it(saved: int, private: bool) -> None:
    one, other = (GuestMemory.load(saved, 4 * MIB, private=private) for _ in range(2))
    assert one.read(3 * MIB + 70000, 4) == b"end\0"
    one.write(MIB, b"mine")
    assert (other.read(MIB, 4), os.pread(saved, 4, MIB)) == (b"word", b"word")
    one.discard(one.view(MIB, 4096))
    assert one.read(MIB, 4) == (b"word" if private else bytes(4))
    one.close()
    other.close()


def test_a_file_that_becomes_shorter_is_refused(saved: int) -> None:
    memory = GuestMemory.allocate(4 * MIB)
    os.ftruncate(saved, 2 * MIB)
    with pytest.raises(OSError, match="shorter"):
        memory._take(saved, 3 * MIB, 4 * MIB, huge=False)
    memory.close()


def table(*entries: tuple[int, int]) -> KvmCpuid2:
    """A table of leaves, and what eax says in them."""
    made = KvmCpuid2(nent=len(entries))
    for number, (leaf, eax) in enumerate(entries):
        made.entries[number] = KvmCpuidEntry2(function=leaf, eax=eax)
    return made


def test_a_timer_whose_interrupt_is_under_way_is_not_lost() -> None:
    assert with_a_deadline([(IA32_TSC, 500), (7, 0), (IA32_TSC_DEADLINE, 0)])[2] == [IA32_TSC_DEADLINE, 500]
    assert with_a_deadline([(IA32_TSC, 500), (IA32_TSC_DEADLINE, 900)])[1] == [IA32_TSC_DEADLINE, 900]


def test_no_guest_waits_for_pages_of_the_host_by_itself() -> None:
    (entry,) = cpuid.normalize(table((0x40000001, 0xFFFFFFFF)), 0, 1).entries[:1]
    assert entry.eax == 0xFFFFFFFF & ~(1 << 4 | 1 << 10 | 1 << 14)


def test_another_processor_is_named_by_its_leaf() -> None:
    here = table((1, 2), (7, 8))
    cpuid.compare(cpuid.entries_of(here), here)
    with pytest.raises(SnapshotError, match=r"leaf 0x7 was 00000009 .*, is 00000008"):
        cpuid.compare(cpuid.entries_of(table((1, 2), (7, 9))), here)
    with pytest.raises(SnapshotError, match="leaf 0x7 was missing, is 00000008"):
        cpuid.compare(cpuid.entries_of(table((1, 2))), here)
    with pytest.raises(SnapshotError, match=r"leaf 0x9 was 00000001 .*, is missing"):
        cpuid.compare(cpuid.entries_of(table((1, 2), (7, 8), (9, 1))), here)
