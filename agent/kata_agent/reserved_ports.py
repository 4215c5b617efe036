"""The reserved ports of vsock: by them a guest's agent knows that root of the host asks it, and no user.

vsock has no permissions: whoever may open a socket on the host, or in a container on it, connects to any
guest. But a port below 1024 is bound by processes only that have CAP_NET_BIND_SERVICE on the host, and none
is chosen by itself. So host and agent agree: the agent's calls and forwarded connections come from such a
port. Streams come from any: they are known by their numbers, which the calls announce.

Source: linux, net/vmw_vsock/af_vsock.c, LAST_RESERVED_PORT and __vsock_bind_connectible.
"""

from __future__ import annotations

import errno
import os
import socket
import time

from kata_agent.constants import STREAM_PORT

PARAMETER = "agent.host_ports=reserved"
"""On the guest kernel's command line: the host does it, so the agent takes calls from no other port."""

_LAST = 1023


def is_guarded(port: int) -> bool:
    """Whether a port of the guest takes connections from reserved ports only."""
    return port != STREAM_PORT


def is_reserved(port: int) -> bool:
    """Whether a port is root's."""
    return port <= _LAST


def bind(sock: socket.socket) -> int:
    """Bind a socket of AF_VSOCK to a reserved port that nobody on this host has, and return that.

    Raises:
        OSError: EACCES, this process may not; EADDRNOTAVAIL, all of them are taken.
    """
    first = time.monotonic_ns()
    for step in range(_LAST):
        port = 1 + (first + step) % _LAST
        if _try(sock, port):
            return port
    raise OSError(errno.EADDRNOTAVAIL, f"{os.strerror(errno.EADDRNOTAVAIL)}: all ports below 1024 are taken")


def is_free(port: int) -> bool:
    """Whether nobody on this host has a port. Raises OSError: this process may not ask."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        return _try(sock, port)


def _try(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind((socket.VMADDR_CID_ANY, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
