"""Port-forwarding's end in the guest: streams that the host opens, each to a port of the guest's loopback.

What the host sends first and how it is answered is in `kata_agent.constants`, at FORWARD_PORT. When the
program has ended its direction, the stream ends both ways: the hybrid vsock of Firecracker and Cloud
Hypervisor tells the host nothing of an end in one direction.
"""

from __future__ import annotations

import errno
import socket
import threading

from kata_agent.constants import FORWARD_ANSWER, FORWARD_REQUEST
from kata_agent.guest import log, streams
from kata_agent.guest.streams import Acceptor

MOST = 256
"""Connections at a time; further ones are refused."""

_ADDRESSES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def serve_forever(acceptor: Acceptor) -> None:
    """Serve each stream in a thread of its own, until the acceptor fails."""
    free = threading.BoundedSemaphore(MOST)
    while True:
        stream, number = acceptor.accept()
        if not free.acquire(blocking=False):
            stream.close()
            continue
        threading.Thread(target=_serve, args=(stream, free), name=f"forward {number}", daemon=True).start()


def _serve(stream: socket.socket, free: threading.BoundedSemaphore) -> None:
    try:
        with stream:
            _forward(stream)
    except OSError as error:
        log.debug(f"a forwarded connection broke: {error}")
    finally:
        free.release()


def _forward(stream: socket.socket) -> None:
    request = stream.recv(FORWARD_REQUEST.size, socket.MSG_WAITALL)
    if len(request) < FORWARD_REQUEST.size:
        return
    family, port = FORWARD_REQUEST.unpack(request)
    try:
        target = _connect(family, port)
    except OSError as error:
        stream.sendall(FORWARD_ANSWER.pack(min(error.errno or errno.EIO, 255)))
        return
    with target:
        stream.sendall(FORWARD_ANSWER.pack(0))
        back = threading.Thread(target=_answer, args=(target, stream), daemon=True)
        back.start()
        _move(stream, target)
        back.join()


def _answer(target: socket.socket, stream: socket.socket) -> None:
    """Move bytes to the end of the program's direction, and end the stream."""
    streams.copy(target.fileno(), stream.fileno())
    streams.wake(stream)


def _connect(family: int, port: int) -> socket.socket:
    """Connect to a port of the loopback: of that family, and of the other where nobody listens there."""
    first = socket.AF_INET6 if family == 6 else socket.AF_INET
    second = socket.AF_INET if family == 6 else socket.AF_INET6
    try:
        return socket.create_connection((_ADDRESSES[first], port))
    except ConnectionRefusedError:
        try:
            return socket.create_connection((_ADDRESSES[second], port))
        except OSError:
            pass  # what the first answered is the reason
        raise


def _move(source: socket.socket, target: socket.socket) -> None:
    """Move bytes to the end of the source, and end the target's direction; a break ends both."""
    streams.copy(source.fileno(), target.fileno())
    try:
        target.shutdown(socket.SHUT_WR)
    except OSError:
        streams.wake(source)  # the target is gone: nobody takes more
