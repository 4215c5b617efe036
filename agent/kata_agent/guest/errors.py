"""Errors of the guest agent: each is the answer that the host gets, with its status.

    RpcError (kata_agent.ttrpc.status)
    ├── InvalidRequestError    the host sent something that cannot be meant
    ├── NotFoundError          no such container, process or device
    ├── ExistsError            that id is taken
    ├── StateError             not possible as things are now
    ├── UnsupportedError       this agent does not do that
    └── GuestError             the guest tried, and failed

An OSError that nobody turned into one of these is answered as INTERNAL with its text, which names the path.
"""

from __future__ import annotations

from kata_agent.ttrpc.status import Code, RpcError


class _AgentError(RpcError):
    status: Code

    def __init__(self, message: str) -> None:
        super().__init__(self.status, message)

    def __reduce__(self) -> tuple[type[_AgentError], tuple[str]]:  # type: ignore[override]
        return type(self), (self.message,)


class InvalidRequestError(_AgentError):
    """The request is malformed or asks for something unsafe; the same request will always fail."""

    status = Code.INVALID_ARGUMENT


class NotFoundError(_AgentError):
    """The container, process or device that was named does not exist."""

    status = Code.NOT_FOUND


class ExistsError(_AgentError):
    """The id is in use."""

    status = Code.ALREADY_EXISTS


class StateError(_AgentError):
    """The object exists, and cannot do this now."""

    status = Code.FAILED_PRECONDITION


class UnsupportedError(_AgentError):
    """This agent does not serve that."""

    status = Code.UNIMPLEMENTED


class GuestError(_AgentError):
    """Something in the guest failed; the message says what was tried."""

    status = Code.INTERNAL
