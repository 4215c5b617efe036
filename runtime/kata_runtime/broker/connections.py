"""Connections that the broker makes for the shim, which can open no socket once it is sealed.

There are two places to connect to, and both are known before the guest runs: containerd's event socket, and
the sandbox's own guest. The socket that is returned does not block, and may still be connecting.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError


class Connections:
    """Where one sandbox may connect to.

    events: path of containerd's ttrpc socket, empty for none. directory, descriptor: of the sandbox.
    """

    def __init__(self, events: str, directory: str, descriptor: int) -> None:
        self._events = events
        self._directory = directory
        self._descriptor = descriptor
        self._guest: int | str | None = None

    def register_guest(self, address: int | str) -> None:
        """Remember the guest's vsock context id, or the path of its VMM's unix socket.

        Raises:
            RequestRefusedError: the path is not below the sandbox's directory.
        """
        if isinstance(address, str):
            inside = address.removeprefix(self._directory + "/")
            if inside == address or any(name in ("", ".", "..") for name in inside.split("/")):
                raise RequestRefusedError(
                    f"the guest's socket {address} is not below the sandbox's directory {self._directory}"
                )
            address = inside
        self._guest = address

    def connect_guest(self, port: int) -> int:
        """Connect to a port of the guest over vsock, or to the VMM's unix socket, which is told the port.

        Raises:
            RequestFailedError: at once, with the reason; else the socket's SO_ERROR has it in the end.
            RequestRefusedError: something else is in the socket's place.
        """
        if self._guest is None:
            raise RequestFailedError("the guest has no address yet", errno.ENOTCONN)
        if isinstance(self._guest, int):
            return _connect(socket.AF_VSOCK, (self._guest, port), f"vsock port {port} of guest {self._guest}")
        return self._connect_inside(self._guest)

    def _connect_inside(self, inside: str) -> int:
        """Connect to a socket of the sandbox's directory, whose maker may have put a link in its place."""
        path = f"{self._directory}/{inside}"
        try:
            found = syscalls.open_beneath(self._descriptor, inside)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV):
                raise RequestRefusedError(
                    f"cannot connect to {path}: a symbolic link is in the way"
                ) from None
            raise RequestFailedError(
                f"cannot connect to {path}: {error.strerror}", error.errno or 0
            ) from None
        try:
            if not stat.S_ISSOCK(os.fstat(found).st_mode):
                raise RequestRefusedError(f"cannot connect to {path}: it is not a socket")
            return _connect(socket.AF_UNIX, f"/proc/self/fd/{found}", path)
        finally:
            os.close(found)

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
