"""Errors of the broker.

    BrokerError
    ├── BrokerLostError        the broker has ended: nothing can be asked of it any more
    ├── RequestRefusedError    the request is outside the vocabulary, or outside the sandbox
    └── RequestFailedError     the host said no; `errno` says how

Both sides use them: the broker raises, a reply carries the kind and the message, the client raises again.
"""

from __future__ import annotations

from kata_runtime.errors import RuntimeRoomError


class BrokerError(RuntimeRoomError):
    """Root of what the broker raises on purpose."""


class BrokerLostError(BrokerError):
    """The broker has ended."""


class RequestRefusedError(BrokerError):
    """The request breaks the vocabulary, or reaches outside of the sandbox."""


class RequestFailedError(BrokerError):
    """The request was proper, and the host could not do it. errno: the system's number, or 0."""

    def __init__(self, message: str, errno: int = 0) -> None:
        self.errno = errno
        super().__init__(message)
