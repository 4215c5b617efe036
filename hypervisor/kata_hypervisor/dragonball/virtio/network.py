"""The network device: a tap of the host, carried by the host's kernel (vhost-net). Source: virtio 1.2, 5.1.

The tap is made elsewhere, with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR: this process cannot make one. One that is
plugged in while the guest runs comes set up (`set_up_tap`) besides, which a sealed process cannot do.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping, Sequence
from ctypes import LittleEndianStructure, c_int, c_uint8, c_uint16, c_ulong

from kata_hypervisor.dragonball.virtio import vhost
from kata_hypervisor.dragonball.virtio.device import (
    EVENT_INDEX,
    INDIRECT_DESCRIPTORS,
    NETWORK,
    VERSION_1,
    DeviceContext,
    DeviceError,
    HotplugDevice,
    QueueSetup,
)
from kata_hypervisor.errors import HostUnfitError

CHECKSUM, GUEST_CHECKSUM, MTU, MAC = 1 << 0, 1 << 1, 1 << 3, 1 << 5
STATUS = 1 << 16
GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 = 1 << 7, 1 << 8, 1 << 11, 1 << 12
MERGEABLE_BUFFERS = 1 << 15
OWN = CHECKSUM | GUEST_CHECKSUM | MTU | MAC | STATUS | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6
"""What the tap does, not vhost."""
FROM_VHOST = VERSION_1 | EVENT_INDEX | INDIRECT_DESCRIPTORS | MERGEABLE_BUFFERS

TUNSETVNETHDRSZ, TUNSETOFFLOAD = 0x400454D8, 0x400454D0
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
HEADER_BYTES = 12
"""struct virtio_net_hdr_v1"""
MAC_BYTES = 6
LINK_UP = 1
NO_TAP = -1
SLOT_MTU = 1500
"""Of a device that is made without a tap: the most that a later one may have."""


class NetworkConfiguration(LittleEndianStructure):
    """struct virtio_net_config, up to the members that our features offer"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("mac", c_uint8 * MAC_BYTES),
        ("status", c_uint16),
        ("max_virtqueue_pairs", c_uint16),
        ("mtu", c_uint16),
    )


def set_up_tap(tap: int) -> None:
    """Let a tap put our header before each packet, and leave checksums and segments to us. Raises OSError."""
    fcntl.ioctl(tap, TUNSETVNETHDRSZ, c_int(HEADER_BYTES))
    fcntl.ioctl(tap, TUNSETOFFLOAD, c_ulong(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6).value)


class Network(HotplugDevice):
    """A network interface with one pair of queues; without a tap its link is down.

    tap, vhost_net: descriptors of a tap that is set up, or NO_TAP, and of /dev/vhost-net; owned from here on.
    mac: six bytes. mtu: bytes.
    """

    kind = NETWORK
    features = OWN | FROM_VHOST
    queue_sizes = (256, 256)
    notify_groups = (0, 1)  # receive, transmit

    def __init__(self, tap: int, vhost_net: int, mac: bytes = bytes(MAC_BYTES), mtu: int = SLOT_MTU) -> None:
        self._tap = tap
        self._vhost = vhost_net
        self._context: DeviceContext | None = None
        self._running = False
        self._lock = threading.Lock()  # a tap may come while the driver starts or stops the device
        self.mac = mac
        self._mtu = mtu

    @property
    def configuration(self) -> bytes:
        """See Device."""
        link = LINK_UP if self._tap != NO_TAP else 0
        return bytes(NetworkConfiguration((c_uint8 * MAC_BYTES)(*self.mac), link, 1, self._mtu))

    def connect(self, context: DeviceContext) -> None:
        """See Device."""
        self._context = context
        try:
            self.features = OWN | FROM_VHOST & vhost.take(self._vhost, context.memory)
        except OSError as error:
            raise HostUnfitError(f"cannot use /dev/vhost-net: {error.strerror}") from error

    def insert(self, tap: int, mac: bytes) -> None:
        """Connect the interface with a tap that is set up, owned from here on. Raises OSError."""
        with self._lock:
            self._tap, self.mac = tap, mac
            if self._running:
                self._set_backend(tap)

    def eject(self) -> None:
        """See HotplugDevice."""
        with self._lock:
            tap, self._tap = self._tap, NO_TAP
            if tap != NO_TAP:
                try:
                    if self._running:
                        self._set_backend(NO_TAP)
                finally:
                    os.close(tap)

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """See Device."""
        context = self._context
        assert context is not None
        try:
            vhost.set_features(self._vhost, features & FROM_VHOST)
            vhost.set_queues(self._vhost, context.memory, queues, context.notify_fds, context.line)
            with self._lock:
                self._running = True
                self._set_backend(self._tap)
        except OSError as error:
            self.reset()
            raise DeviceError(f"the kernel refuses the guest's network: {error.strerror}") from error

    def freeze(self) -> Mapping[int, int]:
        """See Device."""
        if not self._running:
            return {}
        self._set_backend(NO_TAP)
        return vhost.positions(self._vhost, range(len(self.queue_sizes)))

    def thaw(self) -> None:
        """See Device."""
        if self._running:
            self._set_backend(self._tap)

    def reset(self) -> None:
        """See Device."""
        with self._lock:
            if self._running:
                self._running = False
                self._set_backend(NO_TAP)

    def close(self) -> None:
        """See Device."""
        for name in ("_vhost", "_tap"):
            if (descriptor := getattr(self, name)) >= 0:
                os.close(descriptor)
                setattr(self, name, NO_TAP)

    def _set_backend(self, tap: int) -> None:
        for index in range(len(self.queue_sizes)):
            fcntl.ioctl(self._vhost, vhost.VHOST_NET_SET_BACKEND, vhost.VhostVringFile(index, tap))
