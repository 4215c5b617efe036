"""Errors of the broker.

    BrokerError
    ├── BrokerLostError        the broker has exited: nothing can be asked of it any more
    ├── RequestRefusedError    the request breaks its schema, or reaches outside of the sandbox
    └── RequestFailedError     the host could not do it; `errno` says why

Both sides use them: the broker raises, a reply carries the kind and the message, the client raises again.
"""

from __future__ import annotations

from kata_runtime.errors import RuntimeRoomError


class BrokerError(RuntimeRoomError):
    """Root of what the broker raises on purpose."""


class BrokerLostError(BrokerError):
    """The broker has exited."""


class RequestRefusedError(BrokerError):
    """The request breaks its schema, comes in the wrong phase, or reaches outside of the sandbox."""


class RequestFailedError(BrokerError):
    """The request was proper, and the host could not do it. errno: the system's number, or 0."""

    def __init__(self, message: str, errno: int = 0) -> None:
        self.errno = errno
        super().__init__(message)
