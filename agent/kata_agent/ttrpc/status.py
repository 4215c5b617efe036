"""Status codes of a call, and the one exception that carries them over the wire.

Source: the canonical gRPC codes (google.rpc.Code), which ttrpc uses unchanged.
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Canonical status code of a call."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that ended with a status other than OK, on either side of the connection.

    code: the status code; one that this version does not know becomes UNKNOWN.
    message: for the user, complete as it stands.
    """

    def __init__(self, code: Code | int, message: str) -> None:
        try:
            self.code = Code(code)
        except ValueError:
            self.code = Code.UNKNOWN
        self.message = message
        super().__init__(message)

    def __reduce__(self) -> tuple[type[RpcError], tuple[Code, str]]:
        return type(self), (self.code, self.message)


class ConnectionClosedError(RpcError):
    """The connection ended before the call was answered."""

    def __init__(self, message: str = "ttrpc connection closed") -> None:
        super().__init__(Code.UNAVAILABLE, message)

    def __reduce__(self) -> tuple[type[RpcError], tuple[str]]:  # type: ignore[override]
        return type(self), (self.message,)
