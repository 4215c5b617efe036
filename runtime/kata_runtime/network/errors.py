"""The error of this folder."""

from __future__ import annotations

from kata_runtime.errors import RuntimeRoomError


class NetworkError(RuntimeRoomError):
    """A pod's network cannot be read or attached. One line: what was attempted, what is wrong, what to do."""
