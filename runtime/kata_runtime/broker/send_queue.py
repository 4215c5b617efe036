"""Messages to the shim, sent without waiting for it: supervision goes on, whatever the shim does.

The kernel buffers some hundred messages that the shim has not read, and MAX_QUEUED more are kept here. A shim
of this runtime reads all the time, and has one unread reply for each request that waits; one that leaves so
many unread has been taken over, or stands still, and is not served any longer.
"""

from __future__ import annotations

import select
import time

from kata_runtime.broker import messages
from kata_runtime.broker.event_loop import READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from kata_runtime.broker.event_loop import EventLoop

MAX_QUEUED = 256
"""Messages that are kept while the kernel takes no more."""


class SendQueue:
    """The messages to one shim, in order. channel: does not block from here on, and is in the loop.

    overflowed: whether the bound was reached; nothing is sent or kept from then on.
    """

    def __init__(self, channel: socket.socket, loop: EventLoop) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._loop = loop
        self._queued: list[tuple[bytes, Sequence[int]]] = []
        self._gone = False
        self.overflowed = False

    def put(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, or keep it until the shim has read others. The descriptors are closed once sent."""
        if self._gone or self.overflowed:
            messages.close_all(descriptors)
            return
        if len(self._queued) >= MAX_QUEUED:
            self.overflowed = True
            messages.close_all(descriptors)
            self._drop()
            return
        self._queued.append((packet, descriptors))
        if len(self._queued) == 1:
            self.flush()
            if self._queued:
                self._loop.change(self._channel.fileno(), READABLE | WRITABLE)

    def flush(self) -> None:
        """Send what the kernel takes now; called when the channel is writable."""
        while self._queued:
            packet, descriptors = self._queued[0]
            try:
                messages.send(self._channel, packet, descriptors)
            except BlockingIOError:
                return
            except ConnectionError:
                self._gone = True  # which the loop learns from the channel
                self._drop()
                return
            messages.close_all(descriptors)
            del self._queued[0]

    def on_writable(self) -> None:
        """Send on, and wait for the shim to read no more once all is sent."""
        self.flush()
        if not self._queued:
            self._loop.change(self._channel.fileno(), READABLE)

    def drain(self, seconds: float) -> None:
        """Send what is kept before the broker exits, for so long at most."""
        waiter = select.poll()
        waiter.register(self._channel, select.POLLOUT)
        deadline = time.monotonic() + seconds
        while self._queued and (left := deadline - time.monotonic()) > 0:
            waiter.poll(left * 1e3)
            self.flush()
        self._drop()

    def _drop(self) -> None:
        for _, descriptors in self._queued:
            messages.close_all(descriptors)
        self._queued.clear()
