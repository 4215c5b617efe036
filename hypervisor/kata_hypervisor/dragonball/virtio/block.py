"""The block device: a disk that is a file of the host. Source: virtio 1.2, 5.2."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from ctypes import LittleEndianStructure, c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass

from kata_hypervisor.dragonball.virtio.device import BLOCK, DeviceError, HotplugDevice
from kata_hypervisor.dragonball.virtio.local import COMMON_FEATURES, LocalDevice
from kata_hypervisor.dragonball.virtio.queue import Chain, gather, scatter, split, split_last

SEGMENTS_MAX, READ_ONLY, BLOCK_SIZE, FLUSH = 1 << 2, 1 << 5, 1 << 6, 1 << 9
OWN = COMMON_FEATURES | SEGMENTS_MAX | BLOCK_SIZE
SECTOR = 512
QUEUE_SIZE = 256
ID_BYTES = 20

HEADER = struct.Struct("<IIQ")
"""struct virtio_blk_outhdr: type, priority, sector"""
IN, OUT, SYNCHRONIZE, GET_ID = 0, 1, 4, 8
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2


class BlockConfiguration(LittleEndianStructure):
    """struct virtio_blk_config, up to the members that our features offer"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (
        ("capacity", c_uint64),
        ("size_max", c_uint32),
        ("seg_max", c_uint32),
        ("cylinders", c_uint16),
        ("heads", c_uint8),
        ("sectors", c_uint8),
        ("blk_size", c_uint32),
    )


@dataclass(slots=True)
class Request:
    """What the driver asks for. data: the buffers between header and status byte. size: their bytes."""

    kind: int
    sector: int
    data: list[memoryview]
    size: int
    status: memoryview


def parse_request(chain: Chain) -> Request:
    """Understand a chain, however the driver has cut it into buffers.

    Raises:
        DeviceError: there is no whole header, or no byte for the status.
    """
    header, out = split(chain.readable, HEADER.size)
    fields = gather(header)
    if len(fields) < HEADER.size or not chain.writable:
        raise DeviceError("a block request has no whole header, or no room for its status")
    into, status = split_last(chain.writable)
    kind, _, sector = HEADER.unpack(fields)
    data = out if kind == OUT else into
    return Request(kind, sector, data, sum(map(len, data)), status)


class Medium:
    """What is in a drive.

    descriptor: of the file or block device, owned from here on; -1 for a disk of size 0. size: in bytes.
    identity: at most 20 bytes, which the guest reads as the disk's serial number.
    """

    def __init__(self, descriptor: int, size: int, *, read_only: bool, identity: bytes = b"") -> None:
        self.size = size // SECTOR * SECTOR
        self.read_only = read_only
        self.identity = identity[:ID_BYTES]
        self._descriptor = descriptor
        self._lock = threading.Lock()  # held for a request, so that its file is not closed meanwhile

    @staticmethod
    def features_of(*, read_only: bool) -> int:
        """The features of a drive with such a disk in it."""
        return OWN | (READ_ONLY if read_only else FLUSH)

    def close(self) -> None:
        """Close the file once the request that is under way is done; idempotent."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def execute(self, request: Request) -> tuple[int, int]:
        """Return the status, and how many bytes of data were written into the guest's memory."""
        with self._lock:
            try:
                return self._execute(request)
            except OSError:
                return IO_ERROR, 0

    def _execute(self, request: Request) -> tuple[int, int]:
        if request.kind == IN:
            status = self._transfer(request, os.preadv)
            return status, request.size if status == OK else 0
        if request.kind == OUT:
            return IO_ERROR if self.read_only else self._transfer(request, os.pwritev), 0
        if request.kind == SYNCHRONIZE and not self.read_only:
            os.fdatasync(self._descriptor)
            return OK, 0
        if request.kind == GET_ID:
            return OK, scatter(request.data, self.identity.ljust(ID_BYTES, b"\0"))
        return UNSUPPORTED, 0

    def _transfer(self, request: Request, call: Callable[[int, list[memoryview], int], int]) -> int:
        offset, data, left = request.sector * SECTOR, request.data, request.size
        if left % SECTOR or offset + left > self.size:
            return IO_ERROR
        while left:
            done = call(self._descriptor, data, offset)
            if not done:
                return IO_ERROR  # the file became shorter
            offset, left = offset + done, left - done
            if left:
                _, data = split(data, done)
        return OK


class Block(LocalDevice, HotplugDevice):
    """A drive, with a disk in it or without one."""

    kind = BLOCK
    queue_sizes = (QUEUE_SIZE,)
    notify_groups = (0,)
    name = "virtio-blk"

    def __init__(self, medium: Medium | None = None) -> None:
        super().__init__()
        self._medium: Medium | None = None
        self.features = OWN
        if medium is not None:
            self.insert(medium)

    @property
    def configuration(self) -> bytes:
        """See Device."""
        medium = self._medium
        sectors = medium.size // SECTOR if medium is not None else 0
        return bytes(BlockConfiguration(capacity=sectors, seg_max=QUEUE_SIZE - 2, blk_size=SECTOR))

    def __str__(self) -> str:
        if self._medium is None:
            return f"{self.name}, empty"
        return f"{self.name}, read-only" if self._medium.read_only else self.name

    def awaken(self) -> None:
        """See Device: this disk has its own size."""
        assert self._context is not None
        self._context.interrupts.configuration_changed()

    def insert(self, medium: Medium) -> None:
        """Put a disk into the empty drive, which takes it over; the driver has to be notified."""
        self.features = medium.features_of(read_only=medium.read_only)
        self._medium = medium

    def eject(self) -> None:
        """See HotplugDevice; what is asked for from now on is an error."""
        medium, self._medium = self._medium, None
        if medium is not None:
            medium.close()

    def close(self) -> None:
        """See Device."""
        super().close()
        self.eject()

    def handle(self, queue: int, chain: Chain) -> int:
        """See LocalDevice."""
        request, medium = parse_request(chain), self._medium
        status, written = medium.execute(request) if medium is not None else (IO_ERROR, 0)
        request.status[0] = status
        return written + 1
