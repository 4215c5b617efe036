"""Connections that the broker makes for the shim, which can open no socket once it is sealed.

There are two places to connect to, and both are known before the guest runs: containerd's event socket, and
the sandbox's own guest. The socket that is returned does not block, and may still be connecting.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

from kata_agent import reserved_ports
from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


MAX_TO_EVENTS = 1000
"""Connections to containerd's event socket in a sandbox's life: one, and one for each restart of it."""

MAX_RESERVED = 160
"""Connections to a guest's agent over vsock at a time: the forwarded ones, and some for calls."""


class Connections:
    """Where one sandbox may connect to.

    events: path of containerd's ttrpc socket, empty for none. directory, descriptor: of the sandbox. user:
    tells whose its VMM is; raises RequestRefusedError as long as it is nobody's.
    """

    def __init__(self, events: str, directory: str, descriptor: int, user: Callable[[], int]) -> None:
        self._events = events
        self._user = user
        self._directory = directory
        self._descriptor = descriptor
        self._guest: int | str | None = None
        self._to_events = 0
        self._reserved: list[int] = []

    def register_guest(self, address: int | str) -> None:
        """Remember the guest's vsock context id, or the path of its VMM's unix socket.

        Raises:
            RequestRefusedError: the path is not below the sandbox's directory.
        """
        self._guest = self._inside(address) if isinstance(address, str) else address

    def _inside(self, path: str) -> str:
        inside = path.removeprefix(self._directory + "/")
        if inside == path or any(name in ("", ".", "..") for name in inside.split("/")):
            raise RequestRefusedError(
                f"the VMM's socket {path} is not below the sandbox's directory {self._directory}"
            )
        return inside

    def connect_guest(self, port: int) -> int:
        """Connect to a port of the guest over vsock, or to the VMM's unix socket, which is told the port.

        Raises:
            RequestFailedError: at once, with the reason; else the socket's SO_ERROR has it in the end.
            RequestRefusedError: something else is in the socket's place.
        """
        if self._guest is None:
            raise RequestFailedError("the guest has no address yet", errno.ENOTCONN)
        if isinstance(self._guest, int):
            what = f"vsock port {port} of guest {self._guest}"
            bind = self._bind if reserved_ports.is_guarded(port) else None
            return _connect(socket.AF_VSOCK, (self._guest, port), what, bind)
        return self._connect_inside(self._guest)

    def _bind(self, sock: socket.socket) -> None:
        """Bind to a reserved port of vsock, by which a guest's agent knows root.

        The host has few of them, for all its pods. Raises OSError, RequestFailedError.
        """
        if len(self._reserved) >= MAX_RESERVED:
            self._reserved = [port for port in self._reserved if not reserved_ports.is_free(port)]
        if len(self._reserved) >= MAX_RESERVED:
            raise RequestFailedError(
                f"the sandbox has {MAX_RESERVED} connections to its guest's agent, the most at a time",
                errno.EADDRNOTAVAIL,
            )
        self._reserved.append(reserved_ports.bind(sock))

    def connect_vmm(self, path: str) -> int:
        """Connect to a socket of the VMM's below the sandbox's directory. Raises as `connect_guest`."""
        return self._connect_inside(self._inside(path))

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
            connection = _connect(socket.AF_UNIX, f"/proc/self/fd/{found}", path)
        finally:
            os.close(found)
        peer, user = _peer(connection), self._user()
        if peer != user:
            os.close(connection)
            raise RequestRefusedError(
                f"cannot connect to {path}: user {peer} listens on it, not {user}, which its VMM is"
            )
        return connection

    def connect_events(self) -> int:
        """Connect to containerd's event socket. Raises as `connect_guest` does.

        Each connection takes a descriptor and memory of containerd's, which is in no pod's cgroup.
        """
        if self._to_events >= MAX_TO_EVENTS:
            raise RequestRefusedError(
                f"cannot connect to {self._events}: the sandbox has connected {MAX_TO_EVENTS} times"
            )
        connection = _connect(socket.AF_UNIX, self._events, self._events or "no event socket")
        self._to_events += 1
        return connection


def _peer(connection: int) -> int:
    """The user who listens at the other end (unix(7), SO_PEERCRED)."""
    with socket.socket(fileno=os.dup(connection)) as sock:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", credentials)[1]
    return user


def _connect(
    family: int,
    address: tuple[int, int] | str,
    what: str,
    bind: Callable[[socket.socket], None] | None = None,
) -> int:
    """Begin to connect. bind: gives the socket an address of its own."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if bind is not None:
            bind(sock)
        number = sock.connect_ex(address)
    except OSError as error:  # a path that is too long has no number
        sock.close()
        raise RequestFailedError(f"cannot connect to {what}: {error}", error.errno or errno.EINVAL) from None
    except RequestFailedError:
        sock.close()
        raise
    if number not in (0, errno.EINPROGRESS):
        sock.close()
        raise RequestFailedError(f"cannot connect to {what}: {os.strerror(number)}", number)
    return sock.detach()
