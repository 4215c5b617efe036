"""Connections that the broker makes for the shim, which can open no socket once it is sealed.

There are two places to connect to, and both are known before the guest runs: containerd's event socket, and
the sandbox's own guest. The socket that is returned does not block, and may still be connecting.
"""

from __future__ import annotations

import errno
import os
import socket

from kata_runtime.broker.errors import RequestFailedError


class Connections:
    """Where one sandbox may connect to. events: path of containerd's ttrpc socket, empty for none."""

    def __init__(self, events: str) -> None:
        self._events = events
        self._guest: int | str | None = None

    def register_guest(self, address: int | str) -> None:
        """Take down the guest's vsock context id, or the path of its VMM's unix socket."""
        self._guest = address

    def connect_guest(self, port: int) -> int:
        """Connect to a port of the guest over vsock, or to the VMM's unix socket, which is told the port.

        Raises:
            RequestFailedError: at once, with the reason; else the socket's SO_ERROR has it in the end.
        """
        if self._guest is None:
            raise RequestFailedError("the guest has no address yet", errno.ENOTCONN)
        if isinstance(self._guest, int):
            return _connect(socket.AF_VSOCK, (self._guest, port), f"vsock port {port} of guest {self._guest}")
        return _connect(socket.AF_UNIX, self._guest, self._guest)

    def connect_events(self) -> int:
        """Connect to containerd's event socket. Raises as `connect_guest` does."""
        return _connect(socket.AF_UNIX, self._events, self._events or "no event socket")


def _connect(family: int, address: tuple[int, int] | str, what: str) -> int:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        number = sock.connect_ex(address)
    except OSError as error:  # a path that is too long has no number
        sock.close()
        raise RequestFailedError(f"cannot connect to {what}: {error}", error.errno or errno.EINVAL) from None
    if number not in (0, errno.EINPROGRESS):
        sock.close()
        raise RequestFailedError(f"cannot connect to {what}: {os.strerror(number)}", number)
    return sock.detach()
