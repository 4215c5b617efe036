"""A virtio driver that writes to the register file, and a device that remembers what was asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kata_hypervisor.dragonball.virtio.device import VERSION_1, Device, DeviceContext, DeviceError, QueueSetup
from kata_hypervisor.dragonball.virtio.mmio import Registers

FEATURE = 1 << 5
STATUS, INTERRUPT_STATUS, ACKNOWLEDGE = 0x70, 0x60, 0x64


class FakeDevice(Device):
    """Remembers what was asked of it. fails: whether it refuses to be activated."""

    kind = 2
    features = VERSION_1 | FEATURE
    queue_sizes = (16, 8)
    notify_groups = (0, None)
    configuration = b"config"

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.calls: list[Any] = []

    def connect(self, context: DeviceContext) -> None:
        self.calls.append(context)

    def configure(self, offset: int, data: bytes) -> None:
        self.calls.append((offset, data))

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        self.calls.append((features, list(queues)))
        if self.fails:
            raise DeviceError("no")

    def awaken(self) -> None:
        self.calls.append("awaken")

    def notified(self, queue: int) -> None:
        self.calls.append(("notified", queue))

    def freeze(self) -> Mapping[int, int]:
        self.calls.append("freeze")
        return {1: 7}

    def thaw(self) -> None:
        self.calls.append("thaw")

    def reset(self) -> None:
        self.calls.append("reset")

    def close(self) -> None:
        self.calls.append("close")


class Driver:
    """The registers of a device, and the 32-bit words that go in and out."""

    def __init__(self, fails: bool = False) -> None:
        self.device = FakeDevice(fails)
        self.pulses = 0
        self.page = bytearray(0x1000)
        self.registers = Registers(self.device, self._pulse, directly, memoryview(self.page))
        self.registers.show()

    def _pulse(self) -> None:
        self.pulses += 1

    def read(self, offset: int) -> int:
        return int.from_bytes(self.registers.read_memory(offset, 4), "little")

    def read_all(self) -> bytes:
        """Every word of the window."""
        return b"".join(self.registers.read_memory(offset, 4) for offset in range(0, 0x1000, 4))

    def write(self, offset: int, value: int) -> None:
        self.registers.write_memory(offset, value.to_bytes(4, "little"))

    def negotiate(self, features: int) -> None:
        self.write(STATUS, 1)
        self.write(STATUS, 3)
        for page in (0, 1):
            self.write(0x24, page)
            self.write(0x20, features >> 32 * page & 0xFFFFFFFF)
        self.write(STATUS, 0xB)

    def set_queue(self, index: int, size: int, address: int) -> None:
        self.write(0x30, index)
        self.write(0x38, size)
        for number, register in enumerate((0x80, 0x90, 0xA0)):
            self.write(register, address + number * 0x1000 & 0xFFFFFFFF)
            self.write(register + 4, address >> 32)
        self.write(0x44, 1)


def directly(function: Callable[[], None]) -> None:
    """Call a function, on this thread."""
    function()
