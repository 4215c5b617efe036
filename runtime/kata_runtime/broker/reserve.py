"""What the broker keeps back of its process for the end: undoing takes descriptors and memory too.

Without it a sandbox that has used up either could not be cleared away by the process whose work that is.
"""

from __future__ import annotations

import os

DESCRIPTORS = 16
MEMORY = 1 << 20
"""Bytes."""


class Reserve:
    """Held from when it is made. descriptor: one of which copies take the places."""

    def __init__(self, descriptor: int) -> None:
        self._descriptors = [os.dup(descriptor) for _ in range(DESCRIPTORS)]
        self._memory = bytearray(MEMORY)

    def release(self) -> None:
        """Give all of it to what comes now; idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())
        self._memory = bytearray()
