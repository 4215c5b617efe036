"""Devices that the host's kernel serves (vhost): it reads and writes the queues, which we set up.

Source: linux/vhost.h and linux/vhost_types.h of Linux 6.1; a structure has the kernel's name in camel case.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from ctypes import Structure, c_int, c_uint32, c_uint64

from kata_hypervisor.dragonball.memory import GuestMemory, OutOfRangeError
from kata_hypervisor.dragonball.virtio.device import DeviceError, QueueSetup

MOST_REGIONS = 8


class VhostVringState(Structure):
    """struct vhost_vring_state"""

    _fields_ = (("index", c_uint32), ("num", c_uint32))


class VhostVringFile(Structure):
    """struct vhost_vring_file"""

    _fields_ = (("index", c_uint32), ("fd", c_int))


class VhostVringAddr(Structure):
    """struct vhost_vring_addr"""

    _fields_ = (
        ("index", c_uint32),
        ("flags", c_uint32),
        *(
            (name, c_uint64)
            for name in ("desc_user_addr", "used_user_addr", "avail_user_addr", "log_guest_addr")
        ),
    )


class VhostMemoryRegion(Structure):
    """struct vhost_memory_region"""

    _fields_ = tuple(
        (name, c_uint64) for name in ("guest_phys_addr", "memory_size", "userspace_addr", "flags_padding")
    )


class VhostMemory(Structure):
    """struct vhost_memory, with room for some regions"""

    _fields_ = (("nregions", c_uint32), ("padding", c_uint32), ("regions", VhostMemoryRegion * MOST_REGIONS))


def _request(direction: int, number: int, size: int = 0) -> int:
    """The kernel's _IOC for type 0xAF. direction: 0 none, 1 the kernel reads, 2 it writes, 3 both."""
    return direction << 30 | size << 16 | 0xAF << 8 | number


VHOST_GET_FEATURES = _request(2, 0x00, 8)
VHOST_SET_FEATURES = _request(1, 0x00, 8)
VHOST_SET_OWNER = _request(0, 0x01)
VHOST_SET_MEM_TABLE = _request(1, 0x03, 8)
VHOST_SET_VRING_NUM = _request(1, 0x10, 8)
VHOST_SET_VRING_ADDR = _request(1, 0x11, 40)
VHOST_SET_VRING_BASE = _request(1, 0x12, 8)
VHOST_GET_VRING_BASE = _request(3, 0x12, 8)
VHOST_SET_VRING_KICK = _request(1, 0x20, 8)
VHOST_SET_VRING_CALL = _request(1, 0x21, 8)
VHOST_NET_SET_BACKEND = _request(1, 0x30, 8)
VHOST_VSOCK_SET_RUNNING = _request(1, 0x61, 4)


def ring_addresses(memory: GuestMemory, setup: QueueSetup) -> tuple[int, int, int]:
    """Translate a queue's three addresses into this process: descriptors, available, used.

    Raises:
        DeviceError: a part of the queue is not in the guest's memory.
    """
    size = setup.size
    try:
        return (
            memory.host_address(setup.descriptors, 16 * size),
            memory.host_address(setup.available, 6 + 2 * size),
            memory.host_address(setup.used, 6 + 8 * size),
        )
    except OutOfRangeError as error:
        raise DeviceError(f"queue {setup.index}: {error}") from error


def take(descriptor: int, memory: GuestMemory) -> int:
    """Make this process the owner of a vhost device and give it the memory; return its features."""
    fcntl.ioctl(descriptor, VHOST_SET_OWNER)
    table = VhostMemory(nregions=len(memory.regions))
    for number, region in enumerate(memory.regions):
        address = memory.address + region.offset
        table.regions[number] = VhostMemoryRegion(region.start, region.size, address, 0)
    fcntl.ioctl(descriptor, VHOST_SET_MEM_TABLE, table)
    features = c_uint64()
    fcntl.ioctl(descriptor, VHOST_GET_FEATURES, features)
    return features.value


def set_features(descriptor: int, features: int) -> None:
    """Tell the kernel what the driver has accepted."""
    fcntl.ioctl(descriptor, VHOST_SET_FEATURES, c_uint64(features))


def set_queues(
    descriptor: int, memory: GuestMemory, queues: Sequence[QueueSetup], notify_fds: Sequence[int], line: int
) -> None:
    """Tell the kernel where the queues are, who notifies it, and which line it pulses.

    Raises:
        DeviceError: a queue is not in the guest's memory.
    """
    for setup in queues:
        table, available, used = ring_addresses(memory, setup)
        address = VhostVringAddr(setup.index, 0, table, used, available, 0)
        fcntl.ioctl(descriptor, VHOST_SET_VRING_NUM, VhostVringState(setup.index, setup.size))
        fcntl.ioctl(descriptor, VHOST_SET_VRING_BASE, VhostVringState(setup.index, setup.position))
        fcntl.ioctl(descriptor, VHOST_SET_VRING_ADDR, address)
        fcntl.ioctl(descriptor, VHOST_SET_VRING_CALL, VhostVringFile(setup.index, line))
        fcntl.ioctl(descriptor, VHOST_SET_VRING_KICK, VhostVringFile(setup.index, notify_fds[setup.index]))


def positions(descriptor: int, queues: Sequence[int]) -> dict[int, int]:
    """Ask the kernel for the number of the next request of each queue, once it serves none of them."""
    found = {}
    for index in queues:
        state = VhostVringState(index)
        fcntl.ioctl(descriptor, VHOST_GET_VRING_BASE, state)
        found[index] = state.num
    return found
