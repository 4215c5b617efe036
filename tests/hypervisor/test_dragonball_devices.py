"""Devices on their own threads, and devices that the kernel serves, without a guest."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator

import pytest

from interrupts import RecordedInterrupts
from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.dragonball.virtio import vhost
from kata_hypervisor.dragonball.virtio.balloon import Balloon
from kata_hypervisor.dragonball.virtio.device import VERSION_1, DeviceContext, DeviceError, QueueSetup
from kata_hypervisor.dragonball.virtio.entropy import Entropy
from kata_hypervisor.dragonball.virtio.local import LocalDevice
from kata_hypervisor.dragonball.virtio.network import NO_TAP, Network
from kata_hypervisor.dragonball.virtio.vsock import Socket
from kata_hypervisor.errors import HostUnfitError
from virtqueue_driver import VirtqueueDriver


class Bench:
    """A driver, and the device that it drives."""

    def __init__(self, device: LocalDevice) -> None:
        self.device = device
        self.future = RecordedInterrupts()
        self.notify_fd = os.eventfd(0)
        self.driver = VirtqueueDriver()
        device.connect(DeviceContext(self.driver.memory, [self.notify_fd], -1, self.future))

    def start(self, *indices: int) -> None:
        """Set up some queues, all of them the one that there is."""
        setup = self.driver.setup
        places = (setup.size, setup.descriptors, setup.available, setup.used)
        self.device.activate(VERSION_1, [QueueSetup(index, *places) for index in indices])

    def notify(self) -> None:
        """The guest writes to the notification register."""
        os.eventfd_write(self.notify_fd, 1)

    def close(self) -> None:
        """End the device's thread."""
        self.device.close()
        self.device.close()
        os.close(self.notify_fd)


@pytest.fixture
def entropy() -> Iterator[Bench]:
    """Random bytes that are not: of a file with a pattern."""
    descriptor = os.memfd_create("pattern")
    os.write(descriptor, bytes(range(1, 251)) * 100)
    os.lseek(descriptor, 0, os.SEEK_SET)
    bench = Bench(Entropy(descriptor))
    yield bench
    bench.close()


def test_what_was_offered_before_the_start_is_served(entropy: Bench) -> None:
    (address,) = entropy.driver.offer([], [5])
    entropy.start(0)
    assert entropy.future.next() == "used"
    assert entropy.driver.used == [(0, 5)]
    assert entropy.driver.memory.read(address, 5) == b"\1\2\3\4\5"


def test_a_request_gets_a_page_at_most(entropy: Bench) -> None:
    entropy.start(0)
    entropy.driver.offer([], [5000, 5000])
    entropy.notify()
    assert entropy.future.next() == "used"
    assert entropy.driver.used == [(0, 4096)]


def test_a_broken_driver_breaks_its_own_device_until_it_resets_it(entropy: Bench) -> None:
    entropy.start(0)
    entropy.driver.set_index(9)
    entropy.notify()
    assert entropy.future.next() == "needs reset"
    entropy.driver.set_index(0)
    entropy.notify()
    entropy.device.reset()
    entropy.driver.offer([], [1])
    entropy.start(0)
    assert entropy.future.next() == "used"
    assert entropy.future.events.empty()


def test_a_request_without_room_needs_a_reset(entropy: Bench) -> None:
    entropy.start(0)
    entropy.driver.offer([b"x"], [])
    entropy.notify()
    assert entropy.future.next() == "needs reset"


def test_after_a_reset_nothing_is_touched(entropy: Bench) -> None:
    entropy.start(0)
    entropy.device.reset()
    entropy.driver.offer([], [5])
    entropy.notify()
    entropy.device.reset()
    assert entropy.driver.used == []
    assert entropy.future.events.empty()


def test_a_storm_of_notifications_is_one(entropy: Bench) -> None:
    entropy.start(0)
    for _ in range(1000):
        entropy.notify()
    entropy.driver.offer([], [5])
    entropy.notify()
    assert entropy.future.next() == "used"
    assert entropy.future.events.empty()


@pytest.fixture
def balloon() -> Iterator[Bench]:
    """A balloon over memory that cannot be given back."""
    bench = Bench(Balloon())
    yield bench
    bench.close()


@pytest.mark.parametrize("frames", [b"\0\0\0\0", struct.pack("<II", 1, 63)])
def test_pages_in_memory_are_taken(balloon: Bench, frames: bytes) -> None:
    balloon.start(0)
    balloon.driver.offer([frames], [])
    balloon.notify()
    assert balloon.future.next() == "used"


@pytest.mark.parametrize("frames", [b"123", struct.pack("<I", 64), struct.pack("<I", 2**32 - 1)])
def test_pages_elsewhere_are_refused(balloon: Bench, frames: bytes) -> None:
    balloon.start(0)
    balloon.driver.offer([frames], [])
    balloon.notify()
    assert balloon.future.next() == "needs reset"


def test_a_report_names_memory_by_its_buffers(balloon: Bench) -> None:
    balloon.start(2)
    balloon.driver.offer([], [4096, 8192])
    balloon.notify()
    assert balloon.future.next() == "used"
    balloon.device.configure(4, struct.pack("<I", 7))
    balloon.device.configure(0, b"1234")
    assert balloon.device.configuration == struct.pack("<II", 0, 7)


Requests = list[tuple[int, int, bytes | int]]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """What is asked of the kernel, which offers every feature and agrees to all."""
    asked: Requests = []

    def ioctl(descriptor: int, request: int, argument: object = 0) -> int:
        if request == vhost.VHOST_GET_FEATURES:
            argument.value = 2**64 - 1  # type: ignore[attr-defined]
        asked.append((descriptor, request, argument if isinstance(argument, int) else bytes(argument)))  # type: ignore[call-overload]
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return asked


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Two MiB with an address."""
    memory = GuestMemory.allocate(2 << 20)
    yield memory
    memory.close()


SETUPS = [QueueSetup(index, 8, 0x1000 + index * 0x4000, 0x2000, 0x3000) for index in range(3)]


def test_vsock_is_the_kernels(requests: Requests, memory: GuestMemory) -> None:
    device = Socket(os.memfd_create("vsock"), 42)
    assert device.configuration == struct.pack("<Q", 42)
    device.connect(DeviceContext(memory, [70, 71], 80, RecordedInterrupts()))
    region = struct.pack("<4Q", 0, memory.size, memory.address, 0)
    assert requests[1][1:] == (vhost.VHOST_SET_MEM_TABLE, struct.pack("<II", 1, 0) + region + bytes(7 * 32))
    assert device.features == VERSION_1 | 3 << 28
    requests.clear()
    device.activate(VERSION_1, SETUPS)
    names = [request for _, request, _ in requests]
    per_queue = [
        vhost.VHOST_SET_VRING_NUM,
        vhost.VHOST_SET_VRING_BASE,
        vhost.VHOST_SET_VRING_ADDR,
        vhost.VHOST_SET_VRING_CALL,
        vhost.VHOST_SET_VRING_KICK,
    ]
    assert names == [vhost.VHOST_SET_FEATURES, *per_queue, *per_queue, vhost.VHOST_VSOCK_SET_RUNNING]
    base = memory.address
    assert requests[8][2] == struct.pack("<IIQQQQ", 1, 0, base + 0x5000, base + 0x3000, base + 0x2000, 0)
    assert [requests[at][2] for at in (9, 10)] == [struct.pack("<II", 1, 80), struct.pack("<II", 1, 71)]
    device.reset()
    device.reset()
    assert requests[12:] == [(requests[0][0], vhost.VHOST_VSOCK_SET_RUNNING, bytes(4))]
    device.close()
    device.close()


def test_a_queue_outside_of_the_memory_never_reaches_the_kernel(
    requests: Requests, memory: GuestMemory
) -> None:
    device = Socket(os.memfd_create("vsock"), 42)
    device.connect(DeviceContext(memory, [70, 71], 80, RecordedInterrupts()))
    with pytest.raises(DeviceError, match="queue 0: no guest memory"):
        device.activate(VERSION_1, [QueueSetup(0, 8, 0x1000, memory.size - 2, 0)])
    assert vhost.VHOST_SET_VRING_ADDR not in [request for _, request, _ in requests]
    device.close()


def test_the_network_is_the_kernels(requests: Requests, memory: GuestMemory) -> None:
    device = Network(os.memfd_create("tap"), os.memfd_create("vhost"), b"\2\0\0\0\0\1", 1400)
    assert device.configuration == b"\2\0\0\0\0\1" + struct.pack("<HHH", 1, 1, 1400)
    device.connect(DeviceContext(memory, [70, 71], 80, RecordedInterrupts()))
    requests.clear()
    device.activate(VERSION_1 | 1 << 5 | 1 << 15, SETUPS[:2])
    assert requests[0][2] == struct.pack("<Q", VERSION_1 | 1 << 15)
    backends = [content for _, request, content in requests if request == vhost.VHOST_NET_SET_BACKEND]
    assert [struct.unpack("<I", content[:4])[0] for content in backends if not isinstance(content, int)] == [
        0,
        1,
    ]
    requests.clear()
    device.reset()
    assert [content for _, _, content in requests] == [struct.pack("<Ii", index, -1) for index in (0, 1)]
    device.close()


def test_a_network_interface_without_a_tap_gets_one_and_loses_it(
    requests: Requests, memory: GuestMemory
) -> None:
    device = Network(NO_TAP, os.memfd_create("vhost"))
    assert device.configuration == bytes(6) + struct.pack("<HHH", 0, 1, 1500)
    device.connect(DeviceContext(memory, [70, 71], 80, RecordedInterrupts()))
    device.insert(os.memfd_create("tap"), b"\2\0\0\0\0\1")
    assert device.configuration == b"\2\0\0\0\0\1" + struct.pack("<HHH", 1, 1, 1500)
    assert vhost.VHOST_NET_SET_BACKEND not in [request for _, request, _ in requests]
    device.eject()
    device.activate(VERSION_1, SETUPS[:2])
    requests.clear()
    device.insert(tap := os.memfd_create("tap"), b"\2\0\0\0\0\1")
    assert [content for _, _, content in requests] == [struct.pack("<Ii", index, tap) for index in (0, 1)]
    requests.clear()
    device.eject()
    device.eject()
    assert [content for _, _, content in requests] == [struct.pack("<Ii", index, -1) for index in (0, 1)]
    assert device.configuration[6:8] == b"\0\0"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(tap)
    device.close()


def test_a_kernel_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch, memory: GuestMemory) -> None:
    def refuse(descriptor: int, request: int, argument: object = 0) -> int:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    context = DeviceContext(memory, [70, 71], 80, RecordedInterrupts())
    vsock = Socket(os.memfd_create("vsock"), 42)
    with pytest.raises(HostUnfitError, match="vhost-vsock: Device or resource busy"):
        vsock.connect(context)
    network = Network(os.memfd_create("tap"), os.memfd_create("vhost"), bytes(6))
    with pytest.raises(HostUnfitError, match="use /dev/vhost-net: Device or resource busy"):
        network.connect(context)
    vsock.close()
    network.close()


def test_control_runs_what_it_is_given_elsewhere_and_in_order() -> None:
    control = Control("control")
    names: list[str] = []
    control.call(lambda: names.append(threading.current_thread().name))

    def fail() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        control.call(fail)
    control.call(lambda: names.append("after"))
    control.close()
    assert names == ["control", "after"]
