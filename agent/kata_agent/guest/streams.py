"""Moving bytes between a process's pipes or terminal and the streams that the host opened for it.

Both ends of every copy can stall for as long as they like, so nothing here may hold a lock of the kernel's
while it waits: splice(2) locks the pipe, and a process that writes into a locked pipe cannot even be killed.
Hence splice never blocks; poll waits.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from typing import Protocol

from kata_agent.guest import log
from kata_agent.guest.errors import NotFoundError
from kata_agent.ttrpc.blocking import caller_patience

CHUNK = 1 << 20
_SPLICE = 1 | 2  # SPLICE_F_MOVE, SPLICE_F_NONBLOCK
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EIO)
_MOST_UNCLAIMED = 256


class Acceptor(Protocol):
    """Where streams come in: the listening side of a transport."""

    def accept(self) -> tuple[socket.socket, int]:
        """The next connection, and the number that host and guest know it by."""


class StreamTable:
    """Streams that the host has opened and no process has claimed yet, by their number."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._streams: dict[int, socket.socket] = {}

    def accept_forever(self, acceptor: Acceptor) -> None:
        """Take streams in until the acceptor fails; the oldest that nobody claimed make room for new ones."""
        while True:
            stream, number = acceptor.accept()
            self.add(stream, number)

    def add(self, stream: socket.socket, number: int) -> None:
        """Hold a stream until it is claimed."""
        with self._arrived:
            stale = [self._streams.pop(number, None)]
            if len(self._streams) >= _MOST_UNCLAIMED:
                stale.append(self._streams.pop(next(iter(self._streams))))
            self._streams[number] = stream
            self._arrived.notify_all()
        for old in stale:
            if old is not None:
                old.close()

    def claim(self, number: int, timeout: float | None = None) -> socket.socket:
        """Take the stream of that number, which may arrive up to `timeout` seconds after its announcement.

        One that the host has closed is not meant. A number is a port of the host's, and was perhaps somebody
        else's before: any user of a host with vsock may connect, leave bytes for a program to read, and go.

        timeout: without one, the caller's patience.

        Raises:
            NotFoundError: it did not arrive.
        """
        timeout = caller_patience() if timeout is None else timeout
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._is_there(number), timeout):
                raise NotFoundError(f"no stdio stream {number} arrived from the host in {timeout:g} s")
            return self._streams.pop(number)

    def _is_there(self, number: int) -> bool:
        stream = self._streams.get(number)
        if stream is None or _takes_output(stream):
            return stream is not None
        self._streams.pop(number).close()
        return False


def _takes_output(stream: socket.socket) -> bool:
    """Whether the peer may still read: sending nothing is checked as all sending (af_vsock.c, af_unix.c)."""
    try:
        stream.send(b"", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def send_output(source: int, stream: socket.socket | None) -> None:
    """Send all that comes out of source; when that ends, end the stream. Closes both.

    If the host closes the stream first, or never opened one, what comes is read and dropped: a process must
    not stall or die because nobody looks.
    """
    try:
        if stream is not None:
            copy(source, stream.fileno())
        drain(source)
    finally:
        os.close(source)
        if stream is not None:
            end(stream)


def receive_input(stream: socket.socket, target: int) -> None:
    """Write all that the host sends to target, until the host ends it or nobody reads. Closes both."""
    try:
        copy(stream.fileno(), target)
    finally:
        os.close(target)
        end(stream)


def end(stream: socket.socket) -> None:
    """Let the peer see the end, and close; harmless if that happened already."""
    wake(stream)
    stream.close()


def wake(stream: socket.socket) -> None:
    """End the stream both ways without closing it, so that a thread that waits for it goes on."""
    try:
        stream.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the peer, or another thread, was faster


def copy(source: int, target: int) -> None:
    """Move bytes until the source ends or either side is gone."""
    try:
        if not _splice(source, target):
            _shuttle(source, target)
    except OSError as error:
        if error.errno not in _GONE:
            log.info(f"a stdio stream broke: {error}")


def _splice(source: int, target: int) -> bool:
    """Copy within the kernel to the end; False if these two cannot be spliced (nothing was moved then)."""
    while True:
        try:
            if os.splice(source, target, CHUNK, flags=_SPLICE) == 0:
                return True
        except BlockingIOError:
            _wait(source, select.POLLIN)
            _wait(target, select.POLLOUT)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise


def _shuttle(source: int, target: int) -> None:
    while data := _read(source):
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(target, view) :]
            except BlockingIOError:
                _wait(target, select.POLLOUT)


def _read(source: int) -> bytes:
    while True:
        try:
            return os.read(source, CHUNK)
        except BlockingIOError:
            _wait(source, select.POLLIN)


def drain(source: int) -> None:
    """Read to the end, and forget. A terminal's end is EIO."""
    try:
        while _read(source):
            pass
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def _wait(descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    poll.poll()


def wait_readable(descriptor: int, ended: int, grace: float) -> bool:
    """Wait until the descriptor has data or its end to read.

    Once `ended` (an eventfd) is readable too, wait no longer than `grace` seconds; False if that passed.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(ended, select.POLLIN)
    ready = {number for number, _ in poll.poll()}
    if descriptor in ready:
        return True
    poll.unregister(ended)
    return bool(poll.poll(grace * 1000))


def wait_writable(descriptor: int, ended: int) -> bool:
    """Wait until the descriptor takes data (or refuses it for good); False if `ended` came first."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.register(ended, select.POLLIN)
    return descriptor in {number for number, _ in poll.poll()}
