"""Moves bytes between the multiplexed port and the sockets of its streams.

Every stream is a socketpair: one end belongs to its user, this module reads and writes the other. Host and
guest differ only in what tells them that a descriptor is ready: see Reactor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from kata_agent.mux.core import MAX_DATA, Event, FrameType, Mux, ProtocolError

# Above this much unwritten output no stream is read, so that the port's pace is everybody's pace.
_CONGESTED = 256 << 10
_READ_SIZE = 256 << 10

Callback = Callable[[], None]


class Reactor(Protocol):
    """Calls back when a descriptor is ready, from one thread."""

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        """Replace what is called for a descriptor; with neither it is forgotten."""


class _Local:
    """Our end of one stream. backlog: data for its user that did not fit into the socket yet."""

    __slots__ = ("backlog", "finished", "local_eof", "sock", "watching")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.backlog = bytearray()
        self.finished = False
        self.local_eof = False
        self.watching = (False, False)


class Pump:
    """Runs one multiplexed port until it is lost.

    fd: the port, non-blocking; it stays the caller's.
    handle: called for HELLO, OPEN, ACCEPT and REFUSE, and for a RESET of a stream that has no socket here.
    lost: called once when the port has ended, with the reason (None: the peer hung up).
    patient: whether an end of file before the peer's HELLO only means that the peer is not there yet, as it
        does at the guest's end of a virtio-serial port.
    """

    def __init__(
        self,
        fd: int,
        mux: Mux,
        reactor: Reactor,
        *,
        handle: Callable[[Event], None],
        lost: Callable[[Exception | None], None],
        patient: bool = False,
    ) -> None:
        self._fd = fd
        self._mux = mux
        self._reactor = reactor
        self._handle = handle
        self._lost = lost
        self._patient = patient
        self._locals: dict[int, _Local] = {}
        self._congested = False
        self._writing = False
        self._closed = False

    def start(self) -> None:
        """Watch the port and greet the peer."""
        self._watch_port(writing=True)

    def attach(self, stream: int) -> socket.socket:
        """Make the socketpair of a stream that was accepted; returns the user's end, blocking.

        Raises:
            OSError: no descriptors left; the stream was reset.
        """
        try:
            ours, users = socket.socketpair()
        except OSError:
            self._mux.reset(stream)
            raise
        ours.setblocking(False)
        self._locals[stream] = _Local(ours)
        self._update(stream)
        return users

    def flush(self) -> None:
        """Write what the multiplexer has to say, as far as the port takes it."""
        if self._closed:
            return
        output = self._mux.output
        try:
            while output:
                with memoryview(output) as view:
                    written = os.write(self._fd, view[: 2 * MAX_DATA])
                del output[:written]
        except BlockingIOError:
            pass
        except ConnectionError:
            self.close()
            return
        except OSError as error:
            self.close(error)
            return
        self._watch_port(writing=bool(output))
        self._set_congested(len(output) > _CONGESTED)

    def close(self, error: Exception | None = None) -> None:
        """End every stream and forget the port; `lost` is called, once."""
        if self._closed:
            return
        self._closed = True
        self._reactor.watch(self._fd, None, None)
        for stream in list(self._locals):
            self._drop(stream)
        self._lost(error)

    # The port.

    def _watch_port(self, *, writing: bool) -> None:
        if writing != self._writing:
            self._writing = writing
            self._reactor.watch(self._fd, self._port_readable, self.flush if writing else None)

    def _port_readable(self) -> None:
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionError:
            self.close()
            return
        except OSError as error:
            self.close(error)
            return
        if not data:
            if self._mux.ready or not self._patient:
                self.close()
            return
        try:
            for event in self._mux.receive(data):
                self._dispatch(event)
                if self._closed:
                    return
        except ProtocolError as error:
            self.close(error)
            return
        self.flush()

    def _dispatch(self, event: Event) -> None:
        local = self._locals.get(event.stream)
        if local is None:
            self._handle(event)
        elif event.type == FrameType.DATA:
            local.backlog += event.data
            self._deliver(event.stream)
        elif event.type == FrameType.WINDOW:
            self._update(event.stream)
        elif event.type == FrameType.EOF:
            local.finished = True
            self._deliver(event.stream)
        else:
            self._drop(event.stream)

    def _set_congested(self, congested: bool) -> None:
        if congested != self._congested:
            self._congested = congested
            for stream in list(self._locals):
                self._update(stream)

    # The streams' sockets.

    def _update(self, stream: int) -> None:
        """Watch a stream's socket for what can be done with it now."""
        local = self._locals[stream]
        reading = not local.local_eof and not self._congested and self._mux.credit(stream) > 0
        wanted = (reading, bool(local.backlog))
        if wanted != local.watching:
            local.watching = wanted
            self._reactor.watch(
                local.sock.fileno(),
                (lambda: self._local_readable(stream)) if wanted[0] else None,
                (lambda: self._local_writable(stream)) if wanted[1] else None,
            )

    def _local_readable(self, stream: int) -> None:
        local = self._locals.get(stream)
        if local is None or not local.watching[0]:
            return  # an earlier callback of this round ended or stopped it
        try:
            data = local.sock.recv(min(MAX_DATA, self._mux.credit(stream)))
        except BlockingIOError:
            return
        except OSError:
            self._reset(stream)
            self.flush()
            return
        if data:
            self._mux.send(stream, data)
        else:
            local.local_eof = True
            self._mux.finish(stream)
        self._settle(stream)
        self.flush()

    def _local_writable(self, stream: int) -> None:
        if stream in self._locals:
            self._deliver(stream)
            self.flush()

    def _deliver(self, stream: int) -> None:
        """Give a stream's user what the peer sent."""
        local = self._locals[stream]
        try:
            while local.backlog:
                written = local.sock.send(local.backlog)
                del local.backlog[:written]
                self._mux.consume(stream, written)
        except BlockingIOError:
            pass
        except OSError:
            self._reset(stream)
            return
        self._settle(stream)

    def _settle(self, stream: int) -> None:
        """After something moved: pass an end of file on, end the stream, or watch it."""
        local = self._locals[stream]
        if local.finished and not local.backlog:
            if local.local_eof:
                self._drop(stream)
                return
            try:
                local.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._reset(stream)
                return
        self._update(stream)

    def _reset(self, stream: int) -> None:
        """The user's end is gone, so the stream is."""
        self._mux.reset(stream)
        self._drop(stream)

    def _drop(self, stream: int) -> None:
        local = self._locals.pop(stream)
        if any(local.watching):
            self._reactor.watch(local.sock.fileno(), None, None)
        local.sock.close()
