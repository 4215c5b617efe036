"""A split virtqueue, seen from the device: walked over guest memory, without I/O.

Source: virtio 1.2, 2.7. All that is in it was written by the guest and may change while it is read: each
field is read once and checked before it is used.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, field

from kata_hypervisor.dragonball.memory import GuestMemory, OutOfRangeError
from kata_hypervisor.dragonball.virtio.device import DeviceError, QueueSetup

DESCRIPTOR = struct.Struct("<QIHH")
"""struct vring_desc: address, length, flags, next"""
Descriptor = tuple[int, int, int, int]
USED_ELEMENT = 8
"""Bytes of struct vring_used_elem: id and length, 32 bits each"""

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = 1
INDEX = 0xFFFF
# In 16-bit words of both rings.
FLAGS, HEAD, RING = 0, 1, 2

LONGEST_CHAIN_BYTES = 1 << 28


@dataclass(slots=True)
class Chain:
    """One request: buffers that the driver filled, and buffers for the device to fill.

    head: the number by which the driver knows it.
    """

    head: int
    readable: list[memoryview] = field(default_factory=list)
    writable: list[memoryview] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Bytes that the device may write."""
        return sum(len(view) for view in self.writable)


class SplitQueue:
    """One queue.

    Raises:
        DeviceError: from every method but `wants_interrupt`: the driver has broken the rules.
    """

    def __init__(self, memory: GuestMemory, setup: QueueSetup, event_index: bool) -> None:
        self._memory = memory
        self._size = setup.size
        self._event_index = event_index
        for address, alignment in ((setup.descriptors, 16), (setup.available, 2), (setup.used, 4)):
            if address % alignment:
                raise DeviceError(f"queue {setup.index} has a part at {address:#x}, which is not aligned")
        try:
            self._table = memory.view(setup.descriptors, DESCRIPTOR.size * self._size)
            self._available = memory.view(setup.available, 6 + 2 * self._size).cast("H")
            used = memory.view(setup.used, 6 + USED_ELEMENT * self._size)
        except OutOfRangeError as error:
            raise DeviceError(f"queue {setup.index}: {error}") from error
        self._used = used.cast("H")
        self._elements = used[4 : 4 + USED_ELEMENT * self._size].cast("I")
        self._next = self._used_index = self._signalled = setup.position
        self._barrier = threading.Lock()

    @property
    def position(self) -> int:
        """The number of the next request, modulo 2**16. What was popped must have been pushed."""
        return self._next

    def pop(self) -> Chain | None:
        """Take the next request, or None where there is none."""
        waiting = self._available[HEAD] - self._next & INDEX
        if not waiting:
            return None
        if waiting > self._size:
            raise DeviceError(f"the driver offers {waiting} requests in a queue of {self._size}")
        head = self._available[RING + self._next % self._size]
        self._next = self._next + 1 & INDEX
        return self._walk(head)

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back, with the number of bytes that were written into it."""
        at = 2 * (self._used_index % self._size)
        self._elements[at] = chain.head
        self._elements[at + 1] = written
        self._used_index = self._used_index + 1 & INDEX
        self._used[HEAD] = self._used_index  # x86 keeps stores in order

    def rearm(self) -> bool:
        """Ask for a notification of the next request; return whether one has come meanwhile."""
        if self._event_index:
            self._used[RING + USED_ELEMENT // 2 * self._size] = self._next
        self._order()
        return bool(self._available[HEAD] != self._next)

    def ask_for_more(self) -> None:
        """Ask for a notification when something is offered besides what is offered now."""
        if self._event_index:
            self._used[RING + USED_ELEMENT // 2 * self._size] = self._available[HEAD]

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to be interrupted for what was pushed since this was last asked."""
        self._order()
        new, old = self._used_index, self._signalled
        self._signalled = new
        if new == old:
            return False
        if not self._event_index:
            return not self._available[FLAGS] & NO_INTERRUPT
        event = self._available[RING + self._size]
        return bool((new - event - 1 & INDEX) < (new - old & INDEX))

    def _order(self) -> None:
        """A full memory barrier, which taking a lock is: our store must be seen before what we read next."""
        with self._barrier:
            pass

    def _walk(self, head: int) -> Chain:
        """Collect a chain's buffers: the innermost loop of every request, of which one has up to 256."""
        if head >= self._size:
            raise DeviceError(f"the driver offers descriptor {head} of {self._size}")
        chain = Chain(head)
        indirect: list[Descriptor] = []
        entries, number, left, view_of = self._size, head, LONGEST_CHAIN_BYTES, self._memory.view
        for _ in range(self._size + 1):
            address, length, flags, following = indirect[number] if indirect else self._descriptor(number)
            if flags & INDIRECT:
                if indirect or flags & (NEXT | WRITE):
                    raise DeviceError("an indirect descriptor is where none may be")
                indirect = self._indirect(address, length)
                entries, number = len(indirect), 0
                continue
            left -= length
            if not length or left < 0:
                raise DeviceError("a chain has an empty buffer, or more than 256 MiB")
            try:
                view = view_of(address, length)
            except OutOfRangeError as error:
                raise DeviceError(f"a buffer: {error}") from error
            if flags & WRITE:
                chain.writable.append(view)
            elif chain.writable:
                raise DeviceError("a chain has a buffer to read behind one to write")
            else:
                chain.readable.append(view)
            if not flags & NEXT:
                return chain
            number = following
            if number >= entries:
                raise DeviceError(f"a descriptor names descriptor {number} of {entries} as the next")
        raise DeviceError("the driver offers a chain with a loop")

    def _descriptor(self, number: int) -> Descriptor:
        address, length, flags, following = DESCRIPTOR.unpack_from(self._table, number * DESCRIPTOR.size)
        return address, length, flags, following

    def _indirect(self, address: int, length: int) -> list[Descriptor]:
        entries, rest = divmod(length, DESCRIPTOR.size)
        if rest or not 0 < entries <= self._size:
            raise DeviceError(f"a table of indirect descriptors has {length} bytes")
        try:
            return list(DESCRIPTOR.iter_unpack(self._memory.view(address, length)))
        except OutOfRangeError as error:
            raise DeviceError(f"a table of indirect descriptors is in {error}") from error


def split(views: list[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """Split buffers after `count` bytes; fewer where there are fewer."""
    first: list[memoryview] = []
    for number, view in enumerate(views):
        if count < len(view):
            rest = views[number + 1 :]
            if count:
                first.append(view[:count])
            return first, [view[count:], *rest]
        first.append(view)
        count -= len(view)
    return first, []


def split_last(views: list[memoryview]) -> tuple[list[memoryview], memoryview]:
    """Split the last byte off buffers of which none is empty, and of which there is one at least."""
    last = views[-1]
    first = views[:-1]
    if len(last) > 1:
        first.append(last[:-1])
    return first, last[-1:]


def gather(views: list[memoryview]) -> bytes:
    """A copy of what is in some buffers."""
    return b"".join(views)


def scatter(views: list[memoryview], data: bytes) -> int:
    """Write into buffers as much as fits; return how many bytes."""
    at = 0
    for view in views:
        part = data[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
    return min(at, len(data))
