"""One value that a thread of the machine leaves for the event loop: how the guest ended.

A thread that is sealed, and that must not wait for the loop's locks, can write to an eventfd.
"""

from __future__ import annotations

import asyncio
import os
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadResult(Generic[T]):
    """Made on the event loop, before the process is sealed. future: has the first value that was set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._values: list[T] = []
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.add_reader(self._event, self._receive)
        self.future: asyncio.Future[T] = self._loop.create_future()

    def set(self, value: T) -> None:
        """Leave a value; on any thread."""
        self._values.append(value)
        os.eventfd_write(self._event, 1)

    def close(self) -> None:
        """Close the descriptor; on the loop, once no thread can set a value any more."""
        self._loop.remove_reader(self._event)
        os.close(self._event)

    def _receive(self) -> None:
        self._loop.remove_reader(self._event)
        self.future.set_result(self._values[0])
