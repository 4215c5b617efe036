"""From errors to gRPC codes: the only place that knows both.

containerd decides by the code what a failed call means: NotFound makes a delete succeed, FailedPrecondition
makes a client wait, and the message is shown to the user as it stands.
"""

from __future__ import annotations

import logging

from kata_agent.ttrpc.status import Code, RpcError
from kata_configuration.errors import ConfigurationError
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    NotSupportedError,
    SnapshotError,
    UnikernelError,
)
from kata_runtime import errors
from kata_runtime.broker.errors import BrokerError
from kata_runtime.identity import InvalidIdError
from kata_runtime.logging import printable

_log = logging.getLogger(__name__)

# The first class that matches decides, so the special ones come first.
CODES: tuple[tuple[type[Exception], Code], ...] = (
    (errors.NotFoundError, Code.NOT_FOUND),
    (errors.AlreadyExistsError, Code.ALREADY_EXISTS),
    (errors.StateError, Code.FAILED_PRECONDITION),
    (errors.InvalidRequestError, Code.INVALID_ARGUMENT),
    (errors.UnsupportedError, Code.UNIMPLEMENTED),
    (errors.SandboxError, Code.UNKNOWN),
    (errors.RuntimeRoomError, Code.UNKNOWN),
    (InvalidIdError, Code.INVALID_ARGUMENT),
    (ConfigurationError, Code.INVALID_ARGUMENT),
    (NotSupportedError, Code.UNIMPLEMENTED),
    (HostUnfitError, Code.FAILED_PRECONDITION),
    (ConfinementError, Code.FAILED_PRECONDITION),
    (SnapshotError, Code.FAILED_PRECONDITION),
    (UnikernelError, Code.INVALID_ARGUMENT),
    (HypervisorError, Code.UNKNOWN),
    (BrokerError, Code.UNKNOWN),
    (TimeoutError, Code.DEADLINE_EXCEEDED),
)


_RETRIED = "Create"
"""The method that containerd 2 calls again, by an older version of the API, when it is "unimplemented"."""


def to_rpc_error(method: str, error: Exception) -> RpcError:
    """The status for an error that a service method raised. method: "service/method"."""
    answer = _answer(method, error)
    if answer.code is Code.UNIMPLEMENTED and method.rpartition("/")[2] == _RETRIED:
        # That second call would find that the first one's sandbox has ended, and name its reason last.
        return RpcError(Code.FAILED_PRECONDITION, answer.message)
    return answer


def _answer(method: str, error: Exception) -> RpcError:
    if isinstance(error, RpcError):
        # A guest that is gone must not look like a shim that is gone: containerd would give up on both.
        known = Code.UNKNOWN if error.code is Code.UNAVAILABLE else error.code
        return RpcError(known, printable(error.message))
    for kind, code in CODES:
        if isinstance(error, kind):
            return RpcError(code, printable(str(error)))
    _log.error("%s: internal error", method, exc_info=error)
    text = printable(f"{method}: internal error: {type(error).__name__}: {error}")
    return RpcError(Code.INTERNAL, text)
