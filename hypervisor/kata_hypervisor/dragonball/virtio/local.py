"""Devices that this process serves itself: one thread for each device, which waits for its notifications."""

from __future__ import annotations

import abc
import os
import threading
from collections.abc import Mapping, Sequence

from kata_hypervisor.dragonball.virtio.device import (
    EVENT_INDEX,
    INDIRECT_DESCRIPTORS,
    VERSION_1,
    Device,
    DeviceContext,
    DeviceError,
    QueueSetup,
)
from kata_hypervisor.dragonball.virtio.queue import Chain, SplitQueue

COMMON_FEATURES = VERSION_1 | INDIRECT_DESCRIPTORS | EVENT_INDEX


class LocalDevice(Device):
    """A device whose requests are handled one after the other on a thread of its own."""

    name: str

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[int, SplitQueue] = {}
        self._context: DeviceContext | None = None
        self._thread: threading.Thread | None = None
        self._ending = False

    @abc.abstractmethod
    def handle(self, queue: int, chain: Chain) -> int:
        """Serve one request; return how many bytes were written into it. Raises DeviceError."""

    def connect(self, context: DeviceContext) -> None:
        """See Device."""
        self._context = context
        self._thread = threading.Thread(target=self._serve, args=(context,), name=self.name, daemon=True)
        self._thread.start()

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """See Device."""
        assert self._context is not None
        event_index = bool(features & EVENT_INDEX)
        memory = self._context.memory
        with self._lock:
            self._queues = {setup.index: SplitQueue(memory, setup, event_index) for setup in queues}
        os.eventfd_write(self._context.notify_fds[0], 1)  # nobody has notified us of what was offered before

    def freeze(self) -> Mapping[int, int]:
        """See Device: the thread waits for the lock."""
        self._lock.acquire()
        return {index: queue.position for index, queue in self._queues.items()}

    def thaw(self) -> None:
        """See Device."""
        self._lock.release()

    def reset(self) -> None:
        """See Device."""
        with self._lock:
            self._queues = {}

    def close(self) -> None:
        """See Device."""
        self._ending = True
        if self._context is not None and self._thread is not None:
            os.eventfd_write(self._context.notify_fds[0], 1)
            self._thread.join()
        self._thread = None
        self._queues = {}

    def process(self) -> bool:
        """Serve all that is offered now; return whether the driver wants an interrupt.

        Raises:
            DeviceError: the driver has broken the rules.
        """
        wanted = False
        for index, queue in self._queues.items():
            while True:
                chain = queue.pop()
                if chain is not None:
                    queue.push(chain, self.handle(index, chain))
                    if queue.wants_interrupt():
                        wanted = True
                elif not queue.rearm():
                    break
        return wanted

    def _serve(self, context: DeviceContext) -> None:
        while True:
            os.eventfd_read(context.notify_fds[0])
            if self._ending:
                return
            with self._lock:
                try:
                    if self.process():
                        context.interrupts.used()
                except DeviceError:
                    self._queues = {}
                    context.interrupts.needs_reset()
