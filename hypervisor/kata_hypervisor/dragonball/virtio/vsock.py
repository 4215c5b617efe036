"""The vsock device: streams between host and guest, carried by the kernel. Source: virtio 1.2, 5.10."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from ctypes import c_int

from kata_hypervisor.dragonball.virtio import vhost
from kata_hypervisor.dragonball.virtio.device import (
    EVENT_INDEX,
    INDIRECT_DESCRIPTORS,
    SOCKET,
    VERSION_1,
    Device,
    DeviceContext,
    DeviceError,
    QueueSetup,
)
from kata_hypervisor.dragonball.virtio.queue import SplitQueue, scatter
from kata_hypervisor.errors import HostUnfitError

OFFERED = VERSION_1 | EVENT_INDEX | INDIRECT_DESCRIPTORS
RECEIVE, TRANSMIT, EVENTS = range(3)
TRANSPORT_RESET = (0).to_bytes(4, "little")
"""struct virtio_vsock_event: all connections are gone, and the guest's id may be another one"""


class Socket(Device):
    """A vsock device. descriptor: of /dev/vhost-vsock with the guest's id reserved; owned from here on."""

    kind = SOCKET
    features = OFFERED
    queue_sizes = (128, 128, 128)
    notify_groups = (0, 1, None)  # the driver's buffers for events wait for `awaken`

    def __init__(self, descriptor: int, cid: int) -> None:
        self._descriptor = descriptor
        self._cid = cid
        self._context: DeviceContext | None = None
        self._active = self._running = self._frozen = False
        self._events: SplitQueue | None = None

    @property
    def configuration(self) -> bytes:
        """See Device: struct virtio_vsock_config."""
        return self._cid.to_bytes(8, "little")

    def connect(self, context: DeviceContext) -> None:
        """See Device."""
        self._context = context
        try:
            self.features = OFFERED & vhost.take(self._descriptor, context.memory)
        except OSError as error:
            raise HostUnfitError(f"cannot use /dev/vhost-vsock: {error.strerror}") from error

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """See Device."""
        assert self._context is not None
        served = [setup for setup in queues if setup.index != EVENTS]
        memory = self._context.memory
        events = [
            SplitQueue(memory, one, bool(features & EVENT_INDEX)) for one in queues if one.index == EVENTS
        ]
        try:
            vhost.set_features(self._descriptor, features)
            vhost.set_queues(self._descriptor, memory, served, self._context.notify_fds, self._context.line)
        except OSError as error:
            raise _refusal(error) from error
        self._active = True
        self._events = events[0] if events else None
        self._set_running(1)

    def awaken(self) -> None:
        """See Device: the guest's id is another one, and nobody is left whom it was connected to.

        Until the driver has taken that in, what it sends has the old id, and would be lost: it is connected
        when it has put the buffer back.
        """
        self._set_running(0)
        chain = self._events.pop() if self._events is not None else None
        if self._events is None or chain is None:
            raise DeviceError("the guest's vsock driver has no room for the news of its new id")
        self._events.ask_for_more()
        self._events.push(chain, scatter(chain.writable, TRANSPORT_RESET))

    def notified(self, queue: int) -> None:
        """See Device."""
        if self._active and not self._running:
            self._go_on()

    def freeze(self) -> Mapping[int, int]:
        """See Device."""
        if not self._active:
            return {}
        self._frozen = self._running
        self._set_running(0)
        events = {EVENTS: self._events.position} if self._events is not None else {}
        return vhost.positions(self._descriptor, (RECEIVE, TRANSMIT)) | events

    def thaw(self) -> None:
        """See Device."""
        if self._frozen:
            self._frozen = False
            self._go_on()

    def reset(self) -> None:
        """See Device."""
        if self._active:
            self._active, self._events = False, None
            self._set_running(0)

    def close(self) -> None:
        """See Device."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _set_running(self, running: int) -> None:
        try:
            fcntl.ioctl(self._descriptor, vhost.VHOST_VSOCK_SET_RUNNING, c_int(running))
        except OSError as error:
            raise _refusal(error) from error
        self._running = bool(running)

    def _go_on(self) -> None:
        assert self._context is not None
        self._set_running(1)
        for notify_fd in self._context.notify_fds:  # the kernel has ignored those that came meanwhile
            os.eventfd_write(notify_fd, 1)


def _refusal(error: OSError) -> DeviceError:
    return DeviceError(f"the kernel refuses the guest's vsock: {error.strerror}")
