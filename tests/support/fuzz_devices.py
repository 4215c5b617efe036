"""What a fuzzer calls with bytes for the in-process machine: its devices, its kernel file, vhost-user."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping, Sequence

from kata_hypervisor.dragonball import layout
from kata_hypervisor.dragonball.bus import Bus
from kata_hypervisor.dragonball.chipset import Clock, KeyboardController, SleepControl
from kata_hypervisor.dragonball.kernel import parse_kernel
from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.dragonball.serial import SerialPort
from kata_hypervisor.dragonball.virtio.balloon import Balloon
from kata_hypervisor.dragonball.virtio.block import SECTOR, Block, Medium
from kata_hypervisor.dragonball.virtio.device import VERSION_1, Device, DeviceContext, DeviceError, QueueSetup
from kata_hypervisor.dragonball.virtio.entropy import Entropy
from kata_hypervisor.dragonball.virtio.local import LocalDevice
from kata_hypervisor.dragonball.virtio.mmio import Registers
from kata_hypervisor.dragonball.virtio.queue import SplitQueue
from kata_hypervisor.dragonball.virtio.vhost_user import Backend, Message, Request, VhostUserError
from kata_hypervisor.errors import LaunchError

SIZE = 8
TABLE, AVAILABLE, USED, MEMORY = 0, 0x100, 0x200, 0x1000
DISK = 4 * SECTOR


def queue(data: bytes) -> None:
    """The data is the guest's memory, rings and all."""
    memory = GuestMemory.over(bytearray(data[1:MEMORY].ljust(MEMORY, b"\0")))
    walker = SplitQueue(memory, QueueSetup(0, SIZE, TABLE, AVAILABLE, USED), bool(data[:1] > b"\x7f"))
    for _ in range(SIZE + 1):
        try:
            chain = walker.pop()
            if chain is None:
                walker.rearm()
                return
        except DeviceError:
            return
        views = [*chain.readable, *chain.writable]
        assert 0 < len(views) <= SIZE
        assert all(0 < len(view) <= MEMORY for view in views)
        walker.push(chain, chain.room)
        walker.wants_interrupt()
    # The used ring may lie in the available one: then the device itself offers more.


class _Silence:
    """Interrupts that nobody receives."""

    def used(self) -> None: ...

    def configuration_changed(self) -> None: ...

    def needs_reset(self) -> None: ...


@functools.cache
def _served() -> tuple[bytearray, Sequence[LocalDevice]]:
    """A memory, and every device that serves requests itself, over it."""
    content = bytearray(MEMORY)
    disk = os.memfd_create("disk")
    os.write(disk, bytes(range(256)) * (DISK // 256))
    devices: list[LocalDevice] = [
        Block(Medium(os.dup(disk), DISK, read_only=False, identity=b"serial")),
        Block(Medium(disk, DISK, read_only=True)),
        Entropy(os.open("/dev/zero", os.O_RDONLY)),
        Balloon(),
    ]
    for device in devices:
        device.connect(DeviceContext(GuestMemory.over(content), [os.eventfd(0)], -1, _Silence()))
    return content, devices


def requests(data: bytes) -> None:
    """The first byte chooses a device and a queue, the rest is the guest's memory, rings and all."""
    content, devices = _served()
    content[:] = data[1:MEMORY].ljust(MEMORY, b"\0")
    which = data[0] if data else 0
    device = devices[which % len(devices)]
    index = which >> 4 & 3
    walker = SplitQueue(GuestMemory.over(content), QueueSetup(0, SIZE, TABLE, AVAILABLE, USED), False)
    for _ in range(SIZE):
        try:
            chain = walker.pop()
            if chain is None:
                return
            room = chain.room
            assert 0 <= device.handle(index, chain) <= room
        except DeviceError:
            return


class AnyDevice(Device):
    """Takes everything; promises hold for what it is given."""

    kind = 2
    features = VERSION_1 | 1 << 5
    queue_sizes = (16, 8)
    notify_groups = (0, None)
    configuration = b"configuration"

    def connect(self, context: DeviceContext) -> None: ...

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        assert not features & ~self.features
        assert features & VERSION_1
        for setup in queues:
            assert 0 < setup.size <= self.queue_sizes[setup.index]

    def freeze(self) -> Mapping[int, int]:
        return {}

    def thaw(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


def registers(data: bytes) -> None:
    """Six bytes are an access: read or write, size, offset, value (16 bits each); first the usual path."""
    page = memoryview(bytearray(layout.PAGE))
    device = Registers(AnyDevice(), lambda: None, lambda function: function(), page)
    device.show()

    def write(offset: int, value: int, size: int = 4) -> None:
        device.write_memory(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    for offset, value in ((0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0xB)):
        write(offset, value)
    for at in range(0, len(data) - 5, 6):
        kind, size = data[at] & 1, 1 << (data[at + 1] & 3)
        offset = int.from_bytes(data[at + 2 : at + 4], "little") % (0x1000 - size + 1)
        if kind:
            write(offset, int.from_bytes(data[at + 4 : at + 6], "little"), size)
        else:
            assert len(device.read_memory(offset, size)) == size
        if size == 4 and offset % 4 == 0:
            assert page[offset : offset + 4] == device.read_memory(offset, 4)
        assert device.status & ~0xC0 in (0, 1, 3, 0xB, 0xF)


def ports(data: bytes) -> None:
    """Three bytes are an access: read or write, which port, the value; every other value is of 32 bits."""
    bus = Bus()
    serial = SerialPort(lambda text: None, lambda: None)
    bus.add_ports(layout.COM1, 8, serial)
    bus.add_ports(layout.RTC, 2, Clock())
    bus.add_ports(layout.KEYBOARD_COMMAND, 1, KeyboardController(lambda: None))
    bus.add_ports(layout.SLEEP_CONTROL, 2, SleepControl(lambda: None))
    known = (*range(layout.COM1, layout.COM1 + 8), layout.RTC, layout.RTC + 1, layout.KEYBOARD_COMMAND)
    known += (layout.SLEEP_CONTROL, layout.SLEEP_CONTROL + 1, 0)
    for kind, which, value in zip(*(iter(data),) * 3, strict=False):
        port, size = known[which % len(known)], 1 << (kind >> 1 & 3) % 3
        if kind & 1:
            bus.write_port(port, bytes([value]) * size)
        else:
            assert len(bus.read_port(port, size)) == size
    serial.flush()


def kernel(data: bytes) -> None:
    """The data is a kernel file."""
    try:
        image = parse_kernel(data)
    except LaunchError:
        return
    for segment in image.segments:
        assert segment.offset + segment.length <= len(data)
        assert segment.length <= segment.room
        assert segment.address >= 1 << 20


def vhost_user(data: bytes) -> None:
    """The data is what a backend answers to a whole negotiation."""
    ours, theirs = socket.socketpair()
    backend = Backend(ours)
    try:
        theirs.sendall(data[:4096])
        theirs.shutdown(socket.SHUT_WR)
        backend.negotiate()
        backend.send(Message(Request.SET_MEM_TABLE))
        backend.stop_ring(0)
    except VhostUserError:
        pass
    finally:
        backend.close()
        theirs.close()
