"""The error of this folder."""

from __future__ import annotations

from kata_runtime.errors import RuntimeRoomError


class NetworkError(RuntimeRoomError):
    """A pod's network cannot be read or attached. One line: what was attempted, what is wrong, what to do."""


TAKEN = "it exists already: another sandbox uses this network namespace"


class TakenError(NetworkError):
    """Another sandbox has the namespace: what has a name of ours there is not ours to take away."""
