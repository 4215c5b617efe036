"""The file system device: a directory of the host, served by virtiofsd. Source: virtio 1.2, 5.11."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from kata_hypervisor.dragonball.virtio.device import (
    EVENT_INDEX,
    FILE_SYSTEM,
    INDIRECT_DESCRIPTORS,
    VERSION_1,
    Device,
    DeviceContext,
    DeviceError,
    QueueSetup,
)
from kata_hypervisor.dragonball.virtio.vhost import ring_addresses
from kata_hypervisor.dragonball.virtio.vhost_user import (
    PROTOCOL_FEATURES,
    Backend,
    Request,
    Ring,
    VhostUserError,
    memory_table,
    number,
    ring_state,
    start_rings,
)
from kata_hypervisor.errors import LaunchError, SnapshotError

OFFERED = VERSION_1 | EVENT_INDEX | INDIRECT_DESCRIPTORS
TAG_BYTES = 36
REQUEST_QUEUES = 1


class FileSystem(Device):
    """A virtio-fs device.

    connection: a unix socket to virtiofsd; owned from here on. None where nobody serves the files, in a
    machine that is made to be saved: nothing is asked of the device before the guest mounts it. tag: the
    name under which the guest mounts it, at most 36 bytes. queue_size: a power of two.
    """

    kind = FILE_SYSTEM
    features = OFFERED
    notify_groups = (0, 1)  # urgent requests, requests

    def __init__(self, connection: socket.socket | None, tag: str, queue_size: int) -> None:
        self.queue_sizes = (queue_size,) * len(self.notify_groups)
        self._backend = Backend(connection) if connection is not None else None
        self._tag = tag.encode()
        if len(self._tag) > TAG_BYTES:
            raise LaunchError(f"cannot share a directory as {tag}: the name has more than {TAG_BYTES} bytes")
        self._context: DeviceContext | None = None
        self._offered = 0
        self._running: list[int] = []

    @property
    def configuration(self) -> bytes:
        """See Device: struct virtio_fs_config."""
        return self._tag.ljust(TAG_BYTES, b"\0") + REQUEST_QUEUES.to_bytes(4, "little")

    def connect(self, context: DeviceContext) -> None:
        """See Device. Blocks until virtiofsd has answered. Raises LaunchError."""
        self._context = context
        if self._backend is None:
            return
        try:
            self._offered = self._backend.negotiate()
            self._backend.send(memory_table(context.memory))
        except VhostUserError as error:
            raise LaunchError(f"cannot share files with the guest: virtiofsd: {error}") from error
        self.features = OFFERED & self._offered

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """See Device."""
        context, backend = self._context, self._backend
        if backend is None:
            return
        assert context is not None
        rings = [
            Ring(
                setup.index,
                setup.size,
                ring_addresses(context.memory, setup),
                context.notify_fds[setup.index],
                context.line,
                setup.position,
            )
            for setup in queues
        ]
        try:
            backend.send(number(Request.SET_FEATURES, features | self._offered & PROTOCOL_FEATURES))
            start_rings(backend, rings)
            self._running = [ring.index for ring in rings]
            if self._offered & PROTOCOL_FEATURES:
                for index in self._running:
                    backend.send(ring_state(Request.SET_VRING_ENABLE, index, 1))
        except VhostUserError as error:
            raise DeviceError(f"virtiofsd: {error}") from error

    def freeze(self) -> Mapping[int, int]:
        """See Device: what the guest has open is known to virtiofsd only."""
        if self._running:
            raise SnapshotError("files of the host are shared with its guest, and virtiofsd cannot be saved")
        return {}

    def thaw(self) -> None:
        """See Device."""

    def reset(self) -> None:
        """See Device."""
        running, self._running = self._running, []
        if self._backend is None:
            return
        try:
            for index in running:
                self._backend.stop_ring(index)
        except VhostUserError:
            self._backend.close()  # it may not touch the rings: the machine ends with virtiofsd's end

    def close(self) -> None:
        """See Device."""
        if self._backend is not None:
            self._backend.close()
