"""A device's interrupts, for whoever waits for them in a test."""

from __future__ import annotations

import queue

from patience import PATIENCE


class RecordedInterrupts:
    """Interrupts, in their order. See Interrupts."""

    def __init__(self) -> None:
        self.events: queue.Queue[str] = queue.Queue()

    def used(self) -> None:
        self.events.put("used")

    def configuration_changed(self) -> None:
        self.events.put("configuration")

    def needs_reset(self) -> None:
        self.events.put("needs reset")

    def next(self) -> str:
        """What came next."""
        return self.events.get(timeout=PATIENCE)
