"""Cloud Hypervisor's events: JSON objects one after the other, as the VMM's pipe brings them.

Source: event_monitor/src/lib.rs of Cloud Hypervisor 54: {"timestamp": .., "source": "vm", "event": "booted",
"properties": ..}, an empty line after each.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

LIMIT = 64 * 1024
"""Characters of an unfinished event; the VMM may have been taken over by its guest."""


class Event(NamedTuple):
    """One event. properties: what it is told with; nothing, of an event without."""

    source: str
    name: str
    properties: dict[str, Any]


class EventStream:
    """Splits what is read into events; what is no event ends the stream for good."""

    def __init__(self) -> None:
        self._buffer = ""
        self._broken = False
        self._decoder = json.JSONDecoder()

    def feed(self, data: bytes) -> list[Event]:
        """Take what was read; return the events that are complete now."""
        if self._broken:
            return []
        self._buffer += data.decode("ascii", errors="replace")
        events = []
        while rest := self._buffer.lstrip():
            try:
                event, end = self._decoder.raw_decode(rest)
            except (ValueError, RecursionError):  # not there yet, or never
                self._broken = len(rest) > LIMIT or rest[0] != "{"
                break
            self._buffer = rest[end:]
            if isinstance(event, dict):
                properties = event.get("properties")
                found = properties if isinstance(properties, dict) else {}
                events.append(Event(str(event.get("source")), str(event.get("event")), found))
        if self._broken:
            self._buffer = ""
        return events
