"""The vsock device: streams between host and guest, carried by the kernel. Source: virtio 1.2, 5.10."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from ctypes import c_int

from kata_hypervisor.dragonball.virtio import vhost
from kata_hypervisor.dragonball.virtio.device import (
    EVENT_INDEX,
    INDIRECT_DESCRIPTORS,
    SOCKET,
    VERSION_1,
    Device,
    DeviceError,
    QueueSetup,
    Wires,
)
from kata_hypervisor.errors import HostUnfitError

OFFERED = VERSION_1 | EVENT_INDEX | INDIRECT_DESCRIPTORS
RECEIVE, TRANSMIT, EVENTS = range(3)


class Socket(Device):
    """A vsock device. descriptor: of /dev/vhost-vsock with the guest's id reserved; owned from here on."""

    kind = SOCKET
    features = OFFERED
    queue_sizes = (128, 128, 128)
    kick_groups = (0, 1, None)  # the driver's buffers for events stay unused: only a migration has any

    def __init__(self, descriptor: int, cid: int) -> None:
        self._descriptor = descriptor
        self._cid = cid
        self._wires: Wires | None = None
        self._running = False

    @property
    def configuration(self) -> bytes:
        """See Device: struct virtio_vsock_config."""
        return self._cid.to_bytes(8, "little")

    def connect(self, wires: Wires) -> None:
        """See Device."""
        self._wires = wires
        try:
            self.features = OFFERED & vhost.take(self._descriptor, wires.memory)
        except OSError as error:
            raise HostUnfitError(f"cannot use /dev/vhost-vsock: {error.strerror}") from error

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """See Device."""
        assert self._wires is not None
        served = [setup for setup in queues if setup.index != EVENTS]
        try:
            vhost.set_features(self._descriptor, features)
            vhost.set_queues(
                self._descriptor, self._wires.memory, served, self._wires.kicks, self._wires.line
            )
            fcntl.ioctl(self._descriptor, vhost.VHOST_VSOCK_SET_RUNNING, c_int(1))
        except OSError as error:
            raise DeviceError(f"the kernel refuses the guest's vsock: {error.strerror}") from error
        self._running = True

    def reset(self) -> None:
        """See Device."""
        if self._running:
            self._running = False
            fcntl.ioctl(self._descriptor, vhost.VHOST_VSOCK_SET_RUNNING, c_int(0))

    def close(self) -> None:
        """See Device."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
