"""How the host reaches a port of the guest.

Three ways, one contract: kernel vsock, hybrid vsock over a unix socket, and the multiplexed serial port
for hosts without vhost-vsock (see kata_agent.mux).
"""

from __future__ import annotations

import socket
from typing import Protocol


class GuestUnreachableError(ConnectionError):
    """Nothing answers on that port of the guest (yet)."""


class GuestTransport(Protocol):
    """Opens byte streams to ports of the guest."""

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """Open a stream to a guest port.

        Returns the connected, non-blocking socket, and the number by which the guest knows the host's end
        (the peer port that its accept reports): streams are matched to processes with it.

        Raises:
            GuestUnreachableError: nobody listens there yet, or any more. Calling again is harmless.
        """

    async def aclose(self) -> None:
        """Release the transport; streams that are open end."""
