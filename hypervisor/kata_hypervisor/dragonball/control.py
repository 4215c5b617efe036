"""Threads that do what others may not: start and stop devices for the vCPUs, block for the event loop.

They exist before the process is sealed, which can make no thread afterwards.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

Done = Callable[[Exception | None], object]


class Control:
    """Runs functions one after the other on a thread of its own. name: the thread's."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any]) -> None:
        """Run a function there and wait for it. Raises what it raises."""
        finished = threading.Event()
        errors: list[Exception | None] = []

        def done(error: Exception | None) -> None:
            errors.append(error)
            finished.set()

        self._calls.put((function, done))
        finished.wait()
        if errors[0] is not None:
            raise errors[0]

    async def run(self, function: Callable[[], Any]) -> None:
        """Run a function there while the event loop goes on; a cancelled caller waits for it all the same."""
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if error is None:
                finished.set_result(None)
            else:
                finished.set_exception(error)

        self._calls.put((function, lambda error: loop.call_soon_threadsafe(settle, error)))
        try:
            await asyncio.shield(finished)
        except asyncio.CancelledError:
            await asyncio.wait({finished})
            raise

    def close(self) -> None:
        """End the thread; nobody may call any more."""
        self._calls.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, done = call
            try:
                function()
            except Exception as error:  # noqa: BLE001 - raised again where it was asked for
                done(error)
            else:
                done(None)
