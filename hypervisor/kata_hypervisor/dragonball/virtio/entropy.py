"""The entropy device: random bytes of the host's kernel. Source: virtio 1.2, 5.4."""

from __future__ import annotations

import os

from kata_hypervisor.dragonball.virtio.device import ENTROPY, DeviceError
from kata_hypervisor.dragonball.virtio.local import COMMON_FEATURES, LocalDevice
from kata_hypervisor.dragonball.virtio.queue import Chain, scatter, split

MOST_AT_ONCE = 4096
"""Bytes for one request, which may hold fewer than it has room for."""


class Entropy(LocalDevice):
    """Random numbers. descriptor: where they are read; owned from here on."""

    kind = ENTROPY
    features = COMMON_FEATURES
    queue_sizes = (64,)
    notify_groups = (0,)
    name = "virtio-rng"
    configuration = b""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def close(self) -> None:
        """See Device."""
        super().close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def handle(self, queue: int, chain: Chain) -> int:
        """See LocalDevice."""
        room, _ = split(chain.writable, MOST_AT_ONCE)
        if not room:
            raise DeviceError("an entropy request has no room")
        return scatter(room, os.read(self._descriptor, sum(map(len, room))))
