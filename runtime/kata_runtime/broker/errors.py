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


_FOREIGN = 1000


def refusal(error: BaseException) -> str:
    """Which call the broker's own filter has refused, in a sentence; empty for an error of another cause."""
    number = getattr(error, "errno", None)
    if not isinstance(number, int) or number < _FOREIGN:
        return ""
    from kata_hypervisor.seccomp.named_refusal import refused_call

    if not (call := refused_call(number)):
        return ""
    return (
        f"seccomp: the broker called {call}, which its policy does not allow: the call was refused and the "
        "pod ended (kata-ctl seccomp show --driver broker prints the policy; with "
        'shim_seccomp = "log" in [runtime] the call is made, and the kernel\'s audit log names it)'
    )


class RequestFailedError(BrokerError):
    """The request was proper, and the host could not do it. errno: the system's number, or 0."""

    def __init__(self, message: str, errno: int = 0) -> None:
        self.errno = errno
        super().__init__(message)
