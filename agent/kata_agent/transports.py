"""The ways into a guest: kernel vsock, hybrid vsock over a unix socket, the multiplexed serial port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator

from kata_agent.mux.host import MuxHost
from kata_agent.transport import GuestUnreachableError

_TRY = 0.5  # seconds that one connect may take: a guest that is still booting does not answer at all
_LONGEST_REPLY = len("OK 4294967295\n")

_NOT_YET = {
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ETIMEDOUT,
    errno.ENODEV,
    errno.ENOENT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.EAGAIN,
    errno.ENOTCONN,
}


class VsockTransport:
    """Reaches the guest with this context id over vhost-vsock."""

    def __init__(self, cid: int) -> None:
        self._cid = cid

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See GuestTransport."""
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        await _connect(sock, (self._cid, port), f"vsock port {port} of guest {self._cid}")
        _, number = sock.getsockname()
        return sock, number

    async def aclose(self) -> None:
        """See GuestTransport; there is nothing to release."""


class HybridVsockTransport:
    """Reaches the guest through a VMM's unix socket, with the handshake of Firecracker's hybrid vsock.

    path: the socket's path on the host, at most 107 bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See GuestTransport.

        Raises:
            ConnectionError: what answers on the socket does not speak hybrid vsock.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await _connect(sock, self._path, self._path)
        try:
            return sock, await self._handshake(sock, port)
        except BaseException:
            sock.close()
            raise

    async def aclose(self) -> None:
        """See GuestTransport; there is nothing to release."""

    async def _handshake(self, sock: socket.socket, port: int) -> int:
        async with _one_try(f"guest port {port} behind {self._path}"):
            await asyncio.get_running_loop().sock_sendall(sock, b"CONNECT %d\n" % port)
            reply = await _read_line(sock)
        word, _, number = reply.partition(b" ")
        if word != b"OK" or not number.endswith(b"\n") or not number[:-1].isdigit():
            raise ConnectionError(f"{self._path} answered {reply!r} to CONNECT: not a hybrid vsock socket")
        return int(number)


class SerialTransport:
    """Reaches the guest over one virtio-serial port.

    sock: the connected stream socket of the port's character device; owned from here on. Make it in the
        event loop that uses it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._mux = MuxHost(sock)

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See GuestTransport; waits, without polling, until the guest's agent has opened its end."""
        return await self._mux.connect(port)

    async def aclose(self) -> None:
        """End every stream and close the port."""
        await self._mux.aclose()


async def _connect(sock: socket.socket, address: tuple[int, int] | str, what: str) -> None:
    """Connect within one try's time, or close the socket."""
    sock.setblocking(False)
    try:
        async with _one_try(what):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise


@contextlib.asynccontextmanager
async def _one_try(what: str) -> AsyncIterator[None]:
    """Bound what is done within, and tell a guest that is not there (yet) from other failures."""
    try:
        async with asyncio.timeout(_TRY):
            yield
    except TimeoutError:
        raise GuestUnreachableError(f"cannot connect to {what}: no answer") from None
    except OSError as error:
        if error.errno in _NOT_YET:
            raise GuestUnreachableError(f"cannot connect to {what}: {error.strerror}") from error
        raise


async def _read_line(sock: socket.socket) -> bytes:
    """Read up to a line's end and not one byte further: what follows belongs to the stream."""
    line = bytearray()
    while len(line) < _LONGEST_REPLY and not line.endswith(b"\n"):
        byte = await asyncio.get_running_loop().sock_recv(sock, 1)
        if not byte:
            raise ConnectionResetError(errno.ECONNRESET, "closed without an answer")
        line += byte
    return bytes(line)
