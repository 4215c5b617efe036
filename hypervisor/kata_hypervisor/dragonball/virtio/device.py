"""What every virtio device offers to the transport, and what it gets from it."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kata_hypervisor.dragonball.memory import GuestMemory

# Feature bits of every device; virtio 1.2, 6.
INDIRECT_DESCRIPTORS = 1 << 28
EVENT_INDEX = 1 << 29
VERSION_1 = 1 << 32

NETWORK, BLOCK, ENTROPY, BALLOON, SOCKET, FILE_SYSTEM = 1, 2, 4, 5, 19, 26
"""Device ids; virtio 1.2, 5."""


class DeviceError(Exception):
    """The guest has broken the protocol, or what is behind the device has failed: it needs a reset."""


@dataclass(frozen=True, slots=True)
class QueueSetup:
    """A virtqueue as the driver has set it up: its index, number of descriptors, and three addresses.

    position: the number of the request that comes next, modulo 2**16; not 0 in a machine that was saved.
    """

    index: int
    size: int
    descriptors: int
    available: int
    used: int
    position: int = 0


class Interrupts(Protocol):
    """How a device reaches its driver; any thread."""

    def used(self) -> None:
        """Say that buffers were used."""

    def configuration_changed(self) -> None:
        """Say that the configuration space has changed."""

    def needs_reset(self) -> None:
        """Give up until the driver resets the device."""


class DeviceContext(NamedTuple):
    """What connects a device to its machine.

    notify_fds: an eventfd for each group of queues, which the guest's notifications write to. line: that of
    its interrupt pin. interrupts: its transport.
    """

    memory: GuestMemory
    notify_fds: Sequence[int]
    line: int
    interrupts: Interrupts


class Device(abc.ABC):
    """One device. Its methods are called one at a time, and not on a vCPU's thread where they may block.

    kind: the device id. features: those offered, VERSION_1 included. queue_sizes: the largest size of each
    queue. notify_groups: for each queue the number of its notification, None for a call of `notified`.
    """

    kind: int
    features: int
    queue_sizes: tuple[int, ...]
    notify_groups: tuple[int | None, ...]

    def __str__(self) -> str:
        return type(self).__name__

    @property
    @abc.abstractmethod
    def configuration(self) -> bytes:
        """The configuration space; what lies behind it reads as zeros."""

    def configure(self, offset: int, data: bytes) -> None:  # noqa: B027 - most devices have nothing to write
        """The driver writes to the configuration space."""

    @abc.abstractmethod
    def connect(self, context: DeviceContext) -> None:
        """Take what connects it to the machine; once, before the guest runs. Raises HostUnfitError."""

    @abc.abstractmethod
    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """The driver is ready. Raises DeviceError."""

    def awaken(self) -> None:  # noqa: B027 - most devices are the same in every copy
        """Tell a driver that was saved with another device of this kind what is new about this one.

        After `activate`, before the guest runs. Raises DeviceError.
        """

    def notified(self, queue: int) -> None:  # noqa: B027 - most devices listen themselves
        """The driver has notified a queue that is in no group. Raises DeviceError."""

    @abc.abstractmethod
    def freeze(self) -> Mapping[int, int]:
        """Touch the queues no more until `thaw`; return the `position` of each that is served.

        The processors stand still. Raises SnapshotError: what is behind the device cannot be saved.
        """

    @abc.abstractmethod
    def thaw(self) -> None:
        """Go on; after `freeze`."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Stop, and touch the queues no more once this returns; idempotent."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything; idempotent. No vCPU runs any more."""


class HotplugDevice(Device):
    """A device that can be empty."""

    @abc.abstractmethod
    def eject(self) -> None:
        """Close what is in it, when what is under way is done; idempotent. The driver has to be notified."""
