"""The guest's end of the multiplexed serial port: accepts what the host opens, one thread for all streams."""

from __future__ import annotations

import os
import select
import socket
import time
from queue import Empty, SimpleQueue

from kata_agent.mux.core import Event, FrameType, Mux
from kata_agent.mux.pump import Callback, Pump

_BACKLOG = 128
_ABSENT_HOST_PAUSE = 0.02  # seconds between looks at a port whose host end is closed: its poll always returns


class Acceptor:
    """Hands out the streams that the host opens to one port."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[socket.socket, int] | None] = SimpleQueue()

    def accept(self) -> tuple[socket.socket, int]:
        """Wait for a stream; returns its blocking socket, and the number by which the host names it.

        Raises:
            ConnectionError: the host is gone, no stream will come.
        """
        item = self._queue.get()
        if item is None:
            self._queue.put(None)  # for other threads that wait
            raise ConnectionError("the serial port's host end is gone")
        return item

    @property
    def full(self) -> bool:
        """Whether so many streams wait to be accepted that the next is refused."""
        return self._queue.qsize() >= _BACKLOG

    def offer(self, sock: socket.socket, number: int) -> None:
        """Hand a stream to whoever accepts."""
        self._queue.put((sock, number))

    def end(self) -> None:
        """Close the streams that nobody accepted, and fail whoever waits."""
        try:
            while (item := self._queue.get_nowait()) is not None:
                item[0].close()
        except Empty:
            pass
        self._queue.put(None)


class MuxGuest:
    """Serves the port until the host hangs up.

    fd: the open virtio-serial port (or, for tests, a stream socket); it stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._mux = Mux(host=False)
        self._reactor = _EpollReactor()
        self._acceptors: dict[int, Acceptor] = {}
        self._pump = Pump(fd, self._mux, self._reactor, handle=self._handle, lost=self._on_lost, patient=True)
        self._running = True
        self._error: Exception | None = None

    def listen(self, port: int) -> Acceptor:
        """Accept streams to a port from now on; from any thread. A port has one acceptor."""
        return self._acceptors.setdefault(port, Acceptor())

    def run(self) -> None:
        """Move bytes until the host hangs up, waiting for it to come first. Call it from a thread of its own.

        Raises:
            ProtocolError: the host does not speak this protocol.
            OSError: the port failed.
        """
        self._pump.start()
        try:
            while self._running:
                hung_up = self._reactor.run_once()
                if self._fd in hung_up and not self._mux.ready:
                    time.sleep(_ABSENT_HOST_PAUSE)
        finally:
            self._pump.close()
            self._reactor.close()
            for acceptor in list(self._acceptors.values()):
                acceptor.end()
        if self._error:
            raise self._error

    def _on_lost(self, error: Exception | None) -> None:
        self._running = False
        self._error = error

    def _handle(self, event: Event) -> None:
        if event.type != FrameType.OPEN:
            return
        acceptor = self._acceptors.get(event.number)
        if acceptor is None or acceptor.full:
            self._mux.refuse(event.stream)
            return
        self._mux.accept(event.stream)
        try:
            acceptor.offer(self._pump.attach(event.stream), event.stream)
        except OSError:
            pass  # no descriptors left: the stream was reset, which the host sees


class _EpollReactor:
    """Callbacks for ready descriptors, run by whoever calls run_once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[Callback | None, Callback | None]] = {}

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        mask = (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
        known = fd in self._callbacks
        if not mask:
            if known:
                del self._callbacks[fd]
                self._epoll.unregister(fd)
            return
        self._callbacks[fd] = (readable, writable)
        if known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def run_once(self) -> set[int]:
        """Wait, call back, and return the descriptors whose other end hung up."""
        hung_up = set()
        ended = select.EPOLLHUP | select.EPOLLERR
        for fd, events in self._epoll.poll():
            if events & select.EPOLLHUP:
                hung_up.add(fd)
            # Looked up one by one: an earlier callback may have changed or removed the others.
            if events & (select.EPOLLIN | ended) and (callback := self._callbacks.get(fd, (None, None))[0]):
                callback()
            if events & (select.EPOLLOUT | ended) and (callback := self._callbacks.get(fd, (None, None))[1]):
                callback()
        return hung_up

    def close(self) -> None:
        self._epoll.close()
