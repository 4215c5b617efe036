"""How the host reaches a port of the guest.

Three ways, one contract: kernel vsock, hybrid vsock over a unix socket, and the multiplexed serial port
for hosts without vhost-vsock (see kata_agent.mux).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol


class GuestUnreachableError(ConnectionError):
    """Nothing answers on that port of the guest (yet)."""


class GuestSlowError(GuestUnreachableError):
    """The kernel has given a connection up before the guest said whether somebody listens."""


class GuestTransport(Protocol):
    """Opens byte streams to ports of the guest."""

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """Open a stream to a guest port. It may wait for ever: who asks says for how long.

        Returns the connected, non-blocking socket, and the number by which the guest knows the host's end
        (the peer port that its accept reports): streams are matched to processes with it.

        Raises:
            GuestUnreachableError: nobody listens there yet, or any more. Calling again is harmless.
        """

    async def aclose(self) -> None:
        """Release the transport; streams that are open end."""


async def open_stream(transport: GuestTransport, port: int, seconds: float) -> tuple[socket.socket, int]:
    """Open a stream to a port on which a guest listens that runs, however slow it is; see GuestTransport.

    Raises:
        GuestUnreachableError: nobody listens there any more, or it did not answer within so many seconds.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await transport.connect(port)
                except GuestSlowError:
                    await asyncio.sleep(0)
    except TimeoutError:
        raise GuestUnreachableError(f"port {port} of the guest did not answer within {seconds:g} s") from None
