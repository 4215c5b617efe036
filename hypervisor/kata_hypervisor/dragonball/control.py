"""The thread that starts and stops devices for the vCPUs' threads, whose own filter allows next to nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class _Call:
    """Something to do, and how it went."""

    __slots__ = ("done", "error", "function")

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.done = threading.Event()
        self.error: Exception | None = None


class Control:
    """Runs functions one after the other on a thread of its own."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="devices", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Run a function there and wait for it. Raises what it raises."""
        call = _Call(function)
        self._calls.put(call)
        call.done.wait()
        if call.error is not None:
            raise call.error

    def close(self) -> None:
        """End the thread; nobody may call any more."""
        self._calls.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.function()
            except Exception as error:  # raised again where it was called
                call.error = error
            call.done.set()
