"""The driver's side of a split virtqueue, for tests of devices."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.dragonball.virtio.device import QueueSetup
from kata_hypervisor.dragonball.virtio.queue import DESCRIPTOR, NEXT, WRITE

TABLE, AVAILABLE, USED, BUFFERS = 0x1000, 0x2000, 0x3000, 0x10000
MEMORY = 0x40000


class VirtqueueDriver:
    """A queue in a little memory. Buffers are taken one after the other, and never given back."""

    def __init__(self, size: int = 8, index: int = 0) -> None:
        self.memory = GuestMemory.over(bytearray(MEMORY))
        self.size = size
        self.setup = QueueSetup(index, size, TABLE, AVAILABLE, USED)
        self._free = 0
        self._next_buffer = BUFFERS
        self._offered = 0

    def describe(self, number: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write a descriptor."""
        self.memory.write(
            TABLE + number * DESCRIPTOR.size, DESCRIPTOR.pack(address, length, flags, following)
        )

    def offer_head(self, head: int) -> None:
        """Put a number into the available ring."""
        self.memory.write(AVAILABLE + 4 + 2 * (self._offered % self.size), struct.pack("<H", head))
        self._offered = self._offered + 1 & 0xFFFF
        self.set_index(self._offered)

    def set_index(self, index: int) -> None:
        """Set the index of the available ring."""
        self.memory.write(AVAILABLE + 2, struct.pack("<H", index))

    def offer(self, readable: Sequence[bytes], writable: Sequence[int]) -> list[int]:
        """Offer a chain: contents to read, sizes to write. Returns the addresses of the buffers."""
        count = len(readable) + len(writable)
        addresses = []
        for position in range(count):
            write = position >= len(readable)
            content = b"" if write else readable[position]
            length = writable[position - len(readable)] if write else len(content)
            number = (self._free + position) % self.size
            address, self._next_buffer = self._next_buffer, self._next_buffer + length
            self.memory.write(address, content)
            last = position == count - 1
            flags = (WRITE if write else 0) | (0 if last else NEXT)
            self.describe(number, address, length, flags, (number + 1) % self.size)
            addresses.append(address)
        self.offer_head(self._free % self.size)
        self._free += count
        return addresses

    @property
    def used(self) -> list[tuple[int, int]]:
        """What the device gave back: descriptor and bytes written, of at most the last `size`."""
        (index,) = struct.unpack("<H", self.memory.read(USED + 2, 2))
        first = max(0, index - self.size)
        elements = (USED + 4 + 8 * (number % self.size) for number in range(first, index))
        return [struct.unpack("<II", self.memory.read(address, 8)) for address in elements]
