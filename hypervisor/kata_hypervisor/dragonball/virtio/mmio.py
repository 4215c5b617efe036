"""Virtio over MMIO, version 2: the register file of one device, without I/O.

Source: virtio 1.2, 4.2.2 (registers) and 3.1 (initialisation). A driver that leaves the path is not obeyed;
it sees that in the status register, and nobody else is harmed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kata_hypervisor.dragonball.saved_state import Document, Fields
from kata_hypervisor.dragonball.virtio.device import VERSION_1, Device, DeviceError, QueueSetup
from kata_hypervisor.errors import SnapshotError

MAGIC_VALUE, VERSION_VALUE, VENDOR_VALUE = 0x74726976, 2, 0x4154414B


class Register:
    """Offsets of the registers; each is 32 bits wide. An address has its upper half behind it."""

    MAGIC, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
    DEVICE_FEATURES, DEVICE_FEATURES_PAGE = 0x010, 0x014
    DRIVER_FEATURES, DRIVER_FEATURES_PAGE = 0x020, 0x024
    QUEUE_SELECT, QUEUE_SIZE_MAX, QUEUE_SIZE, QUEUE_READY = 0x030, 0x034, 0x038, 0x044
    QUEUE_NOTIFY, INTERRUPT_STATUS, INTERRUPT_ACKNOWLEDGE, STATUS = 0x050, 0x060, 0x064, 0x070
    QUEUE_DESCRIPTORS, QUEUE_AVAILABLE, QUEUE_USED = 0x080, 0x090, 0x0A0
    SHARED_MEMORY_LENGTH, SHARED_MEMORY_END = 0x0B0, 0x0C0
    GENERATION, CONFIGURATION = 0x0FC, 0x100


ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80
PATH = {
    0: ACKNOWLEDGE,
    ACKNOWLEDGE: ACKNOWLEDGE | DRIVER,
    ACKNOWLEDGE | DRIVER: ACKNOWLEDGE | DRIVER | FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK: ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
}
"""From each status the next one. A reset (0) and FAILED are possible everywhere."""
BEFORE_FEATURES, BEFORE_RUNNING, RUNNING = ACKNOWLEDGE | DRIVER, 0xB, 0xF

USED_BUFFERS, CONFIGURATION_CHANGED = 1, 2
WORD, LONG = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
INDEX = 0xFFFF

ADDRESSES = {
    Register.QUEUE_DESCRIPTORS: ("descriptors", 0),
    Register.QUEUE_DESCRIPTORS + 4: ("descriptors", 32),
    Register.QUEUE_AVAILABLE: ("available", 0),
    Register.QUEUE_AVAILABLE + 4: ("available", 32),
    Register.QUEUE_USED: ("used", 0),
    Register.QUEUE_USED + 4: ("used", 32),
}


@dataclass(slots=True)
class QueueRegisters:
    """What the driver has written of a queue."""

    largest: int
    size: int
    ready: bool = False
    descriptors: int = 0
    available: int = 0
    used: int = 0
    position: int = 0


SELECTORS = ("device_page", "driver_page", "selected", "generation")
QUEUE_LIMITS = {
    "size": WORD,
    "ready": 1,
    "position": INDEX,
    **dict.fromkeys(("descriptors", "available", "used"), LONG),
}
"""Of what is saved: the registers of one word, and by a queue's key the largest value."""


CHANGING = (
    *(Register.DEVICE_FEATURES, Register.QUEUE_SIZE_MAX, Register.QUEUE_READY),
    *(Register.INTERRUPT_STATUS, Register.STATUS, Register.GENERATION),
)
FIXED = (
    *(Register.MAGIC, Register.VERSION, Register.DEVICE_ID, Register.VENDOR_ID),
    *range(Register.SHARED_MEMORY_LENGTH, Register.SHARED_MEMORY_END, 4),
)
"""The other registers that are not read as zero."""


class Registers:
    """A MemoryDevice: the registers of one device.

    Its interrupts always report that buffers may have been used: another process may be who pulses the line,
    and the machine lets KVM swallow the acknowledgement of that, which is an exit less for each interrupt.

    pulse: pulses the device's interrupt line. call: calls those methods of the device that may need system
    calls, on another thread where the driver's own may not make them. page: where the guest reads the
    registers without an exit, if it does; it is kept up to date from the first `show` on.
    """

    def __init__(
        self,
        device: Device,
        pulse: Callable[[], object],
        call: Callable[[Callable[[], None]], None],
        page: memoryview | None = None,
    ) -> None:
        self._device = device
        self._pulse = pulse
        self._call = call
        self._page = page
        self._words = page.cast("I") if page is not None else None
        self._lock = threading.Lock()  # of the driver's accesses
        self._pending_lock = threading.Lock()  # of the interrupt status, also with the device's threads
        self._generation = self._noticed = 0
        self._pending = 0
        self._clear()

    def _clear(self) -> None:
        self._status = 0
        self._broken = False
        self._features = 0
        self._device_page = self._driver_page = self._selected = 0
        self._queues = [QueueRegisters(size, size) for size in self._device.queue_sizes]
        with self._pending_lock:
            self._pending = 0

    @property
    def status(self) -> int:
        """The device status, as the driver reads it."""
        return self._status | (NEEDS_RESET if self._broken else 0)

    @property
    def running(self) -> bool:
        """Whether a driver has set DRIVER_OK, and the device works."""
        return self.status == RUNNING

    @property
    def settled(self) -> bool:
        """Whether the driver has looked at the configuration since it last changed."""
        return self._noticed == self._generation

    def used(self) -> None:
        """See Interrupts."""
        self._pulse()

    def configuration_changed(self) -> None:
        """See Interrupts."""
        self._generation = self._generation + 1 & WORD
        with self._pending_lock:
            self._pending |= CONFIGURATION_CHANGED
        self.show()
        self._pulse()

    def show(self) -> None:
        """Write into the page what reads would be answered with."""
        if self._page is not None:
            content = self._device.configuration
            self._page[Register.CONFIGURATION : Register.CONFIGURATION + len(content)] = content
            self._refresh((*FIXED, *CHANGING))

    def _refresh(self, registers: Sequence[int] = CHANGING) -> None:
        if self._words is not None:
            with self._pending_lock:  # whoever shows last has seen all
                for offset in registers:
                    self._words[offset // 4] = self._read(offset) & WORD

    def needs_reset(self) -> None:
        """See Interrupts."""
        self._broken = True
        self.configuration_changed()

    def read_memory(self, offset: int, size: int) -> bytes:
        """See MemoryDevice. Registers are read as 32-bit words; another access reads zeros."""
        if offset >= Register.CONFIGURATION:
            self._noticed = self._generation
            start = offset - Register.CONFIGURATION
            return self._device.configuration[start : start + size].ljust(size, b"\0")
        if size != 4 or offset % 4:
            return bytes(size)
        with self._lock:
            return (self._read(offset) & WORD).to_bytes(4, "little")

    def write_memory(self, offset: int, data: bytes) -> None:
        """See MemoryDevice. Registers are written as 32-bit words; another access does nothing."""
        if offset >= Register.CONFIGURATION:
            with self._lock:
                if self._status in (BEFORE_FEATURES, BEFORE_RUNNING, RUNNING):
                    self._device.configure(offset - Register.CONFIGURATION, data)
            self.show()
            return
        if len(data) != 4 or offset % 4:
            return
        value = int.from_bytes(data, "little")
        if offset == Register.INTERRUPT_ACKNOWLEDGE:
            with self._pending_lock:
                self._pending &= ~value
        else:
            with self._lock:
                self._write(offset, value)
        self._refresh()

    def _queue(self) -> QueueRegisters | None:
        return self._queues[self._selected] if self._selected < len(self._queues) else None

    def _read(self, offset: int) -> int:
        match offset:
            case Register.MAGIC:
                return MAGIC_VALUE
            case Register.VERSION:
                return VERSION_VALUE
            case Register.DEVICE_ID:
                return self._device.kind
            case Register.VENDOR_ID:
                return VENDOR_VALUE
            case Register.DEVICE_FEATURES:
                return self._device.features >> 32 * self._device_page if self._device_page < 2 else 0
            case Register.QUEUE_SIZE_MAX:
                return queue.largest if (queue := self._queue()) else 0
            case Register.QUEUE_READY:
                return int(queue.ready) if (queue := self._queue()) else 0
            case Register.INTERRUPT_STATUS:
                return self._pending | USED_BUFFERS
            case Register.STATUS:
                return self.status
            case Register.GENERATION:
                return self._generation
            case _ if Register.SHARED_MEMORY_LENGTH <= offset < Register.SHARED_MEMORY_END:
                return WORD  # there is no shared memory: its length and base are -1
            case _:
                return 0

    def _write(self, offset: int, value: int) -> None:
        match offset:
            case Register.DEVICE_FEATURES_PAGE:
                self._device_page = value
            case Register.DRIVER_FEATURES_PAGE:
                self._driver_page = value
            case Register.DRIVER_FEATURES:
                if self._status == BEFORE_FEATURES and self._driver_page < 2:
                    shift = 32 * self._driver_page
                    self._features = self._features & ~(WORD << shift) | value << shift
            case Register.QUEUE_SELECT:
                self._selected = value
            case Register.STATUS:
                self._advance(value)
            case Register.QUEUE_NOTIFY:
                self._notify(value)
            case _:
                self._write_queue(offset, value)

    def _notify(self, queue: int) -> None:
        """A notification that no eventfd has taken."""
        if (
            self._status != RUNNING
            or queue >= len(self._queues)
            or self._device.notify_groups[queue] is not None
        ):
            return
        try:
            self._call(lambda: self._device.notified(queue))
        except DeviceError:
            self.needs_reset()

    def _write_queue(self, offset: int, value: int) -> None:
        queue = self._queue()
        if queue is None or self._status != BEFORE_RUNNING:
            return
        if offset == Register.QUEUE_READY:
            queue.ready = value == 1
        elif offset == Register.QUEUE_SIZE and not queue.ready:
            if 0 < value <= queue.largest and value & (value - 1) == 0:
                queue.size = value
        elif offset in ADDRESSES and not queue.ready:
            name, shift = ADDRESSES[offset]
            setattr(queue, name, getattr(queue, name) & ~(WORD << shift) | value << shift)

    def _advance(self, value: int) -> None:
        if value == 0:
            self._call(self._device.reset)
            self._clear()
        elif value & FAILED:
            self._status |= FAILED
        elif value & ~NEEDS_RESET == PATH.get(self._status):
            if value & ~NEEDS_RESET == BEFORE_RUNNING and not self._features_agree():
                return
            self._status = value & ~NEEDS_RESET
            if self._status == RUNNING:
                self._activate()

    def _features_agree(self) -> bool:
        return not self._features & ~self._device.features and bool(self._features & VERSION_1)

    def _activate(self) -> None:
        try:
            self._call(lambda: self._device.activate(self._features, self._setups()))
        except DeviceError:
            self.needs_reset()

    def _setups(self) -> list[QueueSetup]:
        return [
            QueueSetup(index, queue.size, queue.descriptors, queue.available, queue.used, queue.position)
            for index, queue in enumerate(self._queues)
            if queue.ready
        ]

    def freeze(self) -> Document:
        """Stop the device until `thaw`, and return its state. The processors stand still.

        Raises:
            SnapshotError: what is behind the device cannot be saved.
        """
        for index, position in self._device.freeze().items():
            self._queues[index].position = position
        return {
            "kind": self._device.kind,
            "status": self._status,
            "broken": int(self._broken),
            **{key: getattr(self, f"_{key}") for key in SELECTORS},
            "features": self._features,
            "pending": self._pending,
            "queues": [{key: int(getattr(one, key)) for key in QUEUE_LIMITS} for one in self._queues],
        }

    def thaw(self) -> None:
        """Let the device go on."""
        self._device.thaw()

    def restore(self, state: Fields) -> None:
        """Take a saved state, before the guest runs; the processors and interrupt controllers have theirs.

        Raises:
            SnapshotError: it is damaged, or another device's.
        """
        if state.integer("kind", WORD) != self._device.kind:
            raise SnapshotError("it is damaged: the kinds of its devices are in another order")
        self._status = state.integer("status", 0xFF)
        self._broken = bool(state.integer("broken", 1))
        for key in SELECTORS:
            setattr(self, f"_{key}", state.integer(key, WORD))
        self._features = state.integer("features", LONG)
        self._pending = state.integer("pending", USED_BUFFERS | CONFIGURATION_CHANGED)
        for queue, saved in zip(self._queues, state.parts("queues", len(self._queues)), strict=True):
            _restore_queue(queue, saved)
        if self._status & ~FAILED not in (*PATH, RUNNING):
            raise SnapshotError(f"it is damaged: a device has status {self._status:#x}")
        if self._status & RUNNING == RUNNING and not self._broken:
            self._go_on()
        self.show()

    def _go_on(self) -> None:
        if not self._features_agree():
            raise SnapshotError(
                f"a driver uses features {self._features:#x}, its device has {self._device.features:#x} here"
            )
        try:
            self._device.activate(self._features, self._setups())
            self._device.awaken()
        except DeviceError as error:
            raise SnapshotError(f"a device does not go on: {error}") from error
        self.used()  # an interrupt may have been under way, and one too many does no harm


def _restore_queue(queue: QueueRegisters, saved: Fields) -> None:
    for key, most in QUEUE_LIMITS.items():
        setattr(queue, key, saved.integer(key, most))
    queue.ready = bool(queue.ready)
    if not 0 < queue.size <= queue.largest or queue.size & (queue.size - 1):
        raise SnapshotError(
            f"it is damaged: a device has a queue of {queue.size}, its largest is {queue.largest}"
        )
