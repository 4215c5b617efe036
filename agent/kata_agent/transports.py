"""The ways into a guest: kernel vsock, hybrid vsock over a unix socket, the multiplexed serial port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator

from kata_agent import reserved_ports
from kata_agent.mux.host import MuxHost
from kata_agent.transport import GuestSlowError, GuestUnreachableError

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


Dial = Callable[[int], Awaitable[socket.socket]]
"""Opens a connection towards a port of the guest: a non-blocking socket that may still be connecting."""


def dial_vsock(cid: int) -> Dial:
    """For a process that may open sockets, root's: connections to the guest with this context id."""

    async def dial(port: int) -> socket.socket:
        return _begin(socket.AF_VSOCK, (cid, port), reserved=reserved_ports.is_guarded(port))

    return dial


def dial_unix(path: str | os.PathLike[str]) -> Dial:
    """For a process that may open sockets: connections to the VMM's unix socket, at most 107 bytes long."""

    async def dial(port: int) -> socket.socket:
        return _begin(socket.AF_UNIX, os.fspath(path))

    return dial


class VsockTransport:
    """Reaches a guest over vhost-vsock. guest: its name in messages."""

    def __init__(self, dial: Dial, guest: str) -> None:
        self._dial = dial
        self._guest = guest

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See GuestTransport."""
        sock = await _connect(self._dial, port, f"vsock port {port} of {self._guest}")
        _, number = sock.getsockname()
        return sock, number

    async def aclose(self) -> None:
        """See GuestTransport; there is nothing to release."""


class HybridVsockTransport:
    """Reaches the guest through a VMM's unix socket, with the handshake of Firecracker's hybrid vsock.

    path: the socket's path on the host, for messages.
    """

    def __init__(self, dial: Dial, path: str | os.PathLike[str]) -> None:
        self._dial = dial
        self._path = os.fspath(path)

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See GuestTransport.

        Raises:
            ConnectionError: what answers on the socket does not speak hybrid vsock.
        """
        sock = await _connect(self._dial, port, self._path)
        try:
            return sock, await self._handshake(sock, port)
        except BaseException:
            sock.close()
            raise

    async def aclose(self) -> None:
        """See GuestTransport; there is nothing to release."""

    async def _handshake(self, sock: socket.socket, port: int) -> int:
        with _named(f"guest port {port} behind {self._path}"):
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


def _begin(family: int, address: tuple[int, int] | str, *, reserved: bool = False) -> socket.socket:
    """Begin to connect. reserved: from a reserved port. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if reserved:
            reserved_ports.bind(sock)
        number = sock.connect_ex(address)
    except BaseException:
        sock.close()
        raise
    if number not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(number, os.strerror(number))
    return sock


async def _connect(dial: Dial, port: int, what: str) -> socket.socket:
    """Connect, or close the socket."""
    with _named(what):
        sock = await dial(port)
        try:
            await _connected(sock)
        except BaseException:
            sock.close()
            raise
    return sock


async def _connected(sock: socket.socket) -> None:
    """Wait until a connection is there, or raise the OSError that ended it."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(sock, settle)
    try:
        await ready
    finally:
        loop.remove_writer(sock)
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Tell a guest that is not there (yet) from other failures."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_YET:
            raise
        kind = GuestSlowError if error.errno == errno.ETIMEDOUT else GuestUnreachableError
        raise kind(f"cannot connect to {what}: {error.strerror}") from error


async def _read_line(sock: socket.socket) -> bytes:
    """Read up to a line's end and not one byte further: what follows belongs to the stream."""
    line = bytearray()
    while len(line) < _LONGEST_REPLY and not line.endswith(b"\n"):
        byte = await asyncio.get_running_loop().sock_recv(sock, 1)
        if not byte:
            raise ConnectionResetError(errno.ECONNRESET, "closed without an answer")
        line += byte
    return bytes(line)
