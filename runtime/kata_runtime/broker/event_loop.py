"""The broker's event loop: descriptors with what is called when they are ready."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READABLE, WRITABLE = select.POLLIN, select.POLLOUT


class EventLoop:
    """One poll(2) for all that the broker waits for."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}

    def add(self, fd: int, callback: Callable[[int], None], events: int = READABLE) -> None:
        """Call back with the events that occurred (poll(2)); hang-ups and errors always count."""
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._poll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Wait for a descriptor no more; before it is closed."""
        self._poll.unregister(fd)
        del self._callbacks[fd]

    def run_once(self, milliseconds: int | None) -> None:
        """Wait, at most so long, and call back once for each descriptor that is ready."""
        for fd, events in self._poll.poll(milliseconds):
            if (callback := self._callbacks.get(fd)) is not None:  # an earlier callback may have removed it
                callback(events)
