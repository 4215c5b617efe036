"""The balloon: memory that the guest gives back to the host. Source: virtio 1.2, 5.5.

With free-page reporting the guest reports what it does not use, without being asked. What it takes back
later comes as zeros, which the host's kernel makes at the first touch.
"""

from __future__ import annotations

from ctypes import LittleEndianStructure, c_uint32

from kata_hypervisor.dragonball.layout import PAGE
from kata_hypervisor.dragonball.memory import GuestMemory, OutOfRangeError
from kata_hypervisor.dragonball.virtio.device import BALLOON, DeviceError
from kata_hypervisor.dragonball.virtio.local import COMMON_FEATURES, LocalDevice
from kata_hypervisor.dragonball.virtio.queue import Chain, gather

DEFLATE_ON_OOM, REPORTING = 1 << 2, 1 << 5
INFLATE, REPORT = 0, 2  # queue 1 deflates: there is nothing to do for it
"""Queues that there are with our features: the reporting queue comes right after the first two."""

FRAME_BYTES = 4
MOST_FRAMES = 4096
"""Page numbers in one request; Linux sends 256."""


class BalloonConfiguration(LittleEndianStructure):
    """struct virtio_balloon_config, up to the members that our features offer"""

    _fields_ = (("num_pages", c_uint32), ("actual", c_uint32))


class Balloon(LocalDevice):
    """A balloon whose size nobody changes while the guest runs; it is there for the reports."""

    kind = BALLOON
    features = COMMON_FEATURES | DEFLATE_ON_OOM | REPORTING
    queue_sizes = (128, 128, 128)
    notify_groups = (0, 0, 0)
    name = "virtio-balloon"

    def __init__(self) -> None:
        super().__init__()
        self._configuration = BalloonConfiguration()

    @property
    def configuration(self) -> bytes:
        """See Device."""
        return bytes(self._configuration)

    def configure(self, offset: int, data: bytes) -> None:
        """See Device: the driver reports how large the balloon is, which we only note."""
        if offset == BalloonConfiguration.actual.offset and len(data) == FRAME_BYTES:
            self._configuration.actual = int.from_bytes(data, "little")

    def handle(self, queue: int, chain: Chain) -> int:
        """See LocalDevice."""
        assert self._context is not None
        memory = self._context.memory
        if queue == REPORT:
            for view in chain.writable:
                memory.discard(view)
        elif queue == INFLATE:
            for frame in frames_of(chain):
                discard_frame(memory, frame)
        return 0


def frames_of(chain: Chain) -> memoryview:
    """The page numbers of a request.

    Raises:
        DeviceError: there are too many, or a part of one.
    """
    size = sum(map(len, chain.readable))
    if size % FRAME_BYTES or size > MOST_FRAMES * FRAME_BYTES:
        raise DeviceError(f"a balloon request has {size} bytes of page numbers")
    return memoryview(gather(chain.readable)).cast("I")


def discard_frame(memory: GuestMemory, frame: int) -> None:
    """Give one page back. Raises DeviceError where there is none."""
    try:
        memory.discard(memory.view(frame * PAGE, PAGE))
    except OutOfRangeError as error:
        raise DeviceError(f"a balloon request names {error}") from error
