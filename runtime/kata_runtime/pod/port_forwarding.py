"""Port-forwarding: connections to the loopback of the pod's namespace go to that of the guest.

The listeners were made in the namespace, where one rule sends every connection over loopback to them (see
`network.forwarding`), before this process was sealed. Each connection gets a stream to the guest, whose agent
connects to the port that was meant. A port that is closed there resets the connection: the listeners have
SO_LINGER with no time, which the accepted sockets inherit. One that ends well is closed when the other side
has all of it.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NoReturn

import anyio
import anyio.abc

from kata_agent.constants import FORWARD_ANSWER, FORWARD_PORT, FORWARD_REQUEST
from kata_hypervisor.concurrency import gather
from kata_runtime.network import forwarding
from kata_runtime.stdio.moving import move

_log = logging.getLogger(__name__)

MOST = 128
"""Connections at a time; further ones wait in the listeners' backlog. A host with vhost-vsock has 1023."""

_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_PATIENCE = 100
"""Looks at what a peer has not taken, without that it takes something, until it is reset."""
_OUT_OF_RESOURCES_PAUSE = 0.2

Connect = Callable[[int], Awaitable[tuple[socket.socket, int]]]


class RefusedError(Exception):
    """Nobody listens on a port of the guest's loopback."""


class Forwarder:
    """Serves the listeners of a pod. connect: opens a stream to a port of the guest.

    listeners: this object's own.
    """

    def __init__(self, listeners: Sequence[socket.socket], connect: Connect) -> None:
        self._listeners = listeners
        self._connect = connect
        self._free = anyio.Semaphore(MOST)

    async def serve(self) -> NoReturn:
        """Forward connections until cancelled."""
        async with anyio.create_task_group() as tasks:
            for listener in self._listeners:
                tasks.start_soon(self._accept, listener, tasks)
            await anyio.sleep_forever()
        raise AssertionError("a task group that waits for ever has ended")

    def close(self) -> None:
        """Close the listeners, after `serve`; idempotent."""
        for listener in self._listeners:
            listener.close()

    async def _accept(self, listener: socket.socket, tasks: anyio.abc.TaskGroup) -> None:
        while True:
            await anyio.wait_readable(listener)
            await self._free.acquire()
            try:
                connection, _ = listener.accept()
            except OSError as error:
                self._free.release()
                if not isinstance(error, BlockingIOError | ConnectionError):
                    _log.warning("a forwarded connection cannot be accepted: %s", error)
                    await anyio.sleep(_OUT_OF_RESOURCES_PAUSE)
                continue
            connection.setblocking(False)
            tasks.start_soon(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                await self._forward(connection)
        except (OSError, RefusedError) as error:
            _log.debug("a forwarded connection ended: %s", error)
        finally:
            self._free.release()

    async def _forward(self, connection: socket.socket) -> None:
        port = forwarding.original_port(connection)
        stream, _ = await self._connect(FORWARD_PORT)
        with stream:
            await _ask(stream, 6 if connection.family == socket.AF_INET6 else 4, port)
            await gather(partial(_move_all, connection, stream), partial(_move_all, stream, connection))
            await _until_taken(connection)


async def _ask(stream: socket.socket, family: int, port: int) -> None:
    """Have the guest connect. Raises RefusedError."""
    stream.send(FORWARD_REQUEST.pack(family, port))  # the first bytes of a stream
    await anyio.wait_readable(stream)
    answer = stream.recv(FORWARD_ANSWER.size)
    if answer != FORWARD_ANSWER.pack(0):
        raise RefusedError(f"nobody listens on port {port} of the guest")


async def _move_all(source: socket.socket, target: socket.socket) -> None:
    while await move(source.fileno(), target.fileno()):
        pass
    target.shutdown(socket.SHUT_WR)


async def _until_taken(connection: socket.socket) -> None:
    """Wait until the peer has all that was sent: what it has not is lost by the close."""
    pause, before, looks = _PAUSE, -1, 0
    while (left := _unacknowledged(connection)) and looks < _PATIENCE:
        looks = looks + 1 if left == before else 0
        before = left
        await anyio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _unacknowledged(connection: socket.socket) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(count)
