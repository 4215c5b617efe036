"""The host's end of the multiplexed serial port, on asyncio: opens streams to ports of the guest."""

from __future__ import annotations

import asyncio
import socket

from kata_agent.mux.core import Event, FrameType, Mux
from kata_agent.mux.pump import Callback, Pump
from kata_agent.transport import GuestUnreachableError


class MuxHost:
    """Serves one port. It greets the guest at once; needs a running event loop.

    sock: the connected stream socket of the port's character device; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._opening: dict[int, tuple[int, asyncio.Future[socket.socket]]] = {}
        self._mux = Mux(host=True)
        self._lost: str | None = None
        self._pump = Pump(
            sock.fileno(), self._mux, _LoopReactor(loop), handle=self._handle, lost=self._on_lost
        )
        self._pump.start()

    async def ready(self) -> None:
        """Return once the guest has sent HELLO: its agent serves the port.

        Raises:
            GuestUnreachableError: the port was lost, or what is there is not our agent.
        """
        self._check()
        await asyncio.shield(self._ready)

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """Open a stream to a guest port, after `ready`; returns its non-blocking socket, and its number.

        Raises:
            GuestUnreachableError: nobody listens there, or the port was lost.
        """
        await self.ready()
        self._check()
        stream = self._mux.open(port)
        answer: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._opening[stream] = (port, answer)
        self._pump.flush()
        try:
            return await answer, stream
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()
            raise
        finally:
            if self._opening.pop(stream, None):
                self._mux.reset(stream)
                self._pump.flush()

    async def aclose(self) -> None:
        """End every stream and close the port."""
        self._pump.close()

    def _check(self) -> None:
        if self._lost is not None:
            raise GuestUnreachableError(self._lost)

    def _handle(self, event: Event) -> None:
        if event.type == FrameType.HELLO:
            self._ready.set_result(None)
            return
        port, answer = self._opening.pop(event.stream)
        if answer.done():  # cancelled in this round of the loop
            self._mux.reset(event.stream)
        elif event.type == FrameType.ACCEPT:
            try:
                user = self._pump.attach(event.stream)
            except OSError as error:
                answer.set_exception(error)
                return
            user.setblocking(False)
            answer.set_result(user)
        else:
            answer.set_exception(GuestUnreachableError(f"nobody listens on guest port {port}"))

    def _on_lost(self, error: Exception | None) -> None:
        self._sock.close()
        reason = f": {error}" if error else ""
        self._lost = f"the guest's serial port is closed{reason}"
        if not self._ready.done():
            self._ready.set_exception(GuestUnreachableError(self._lost))
            self._ready.exception()  # seen, should nobody wait for it
        for _, answer in self._opening.values():
            if not answer.done():
                answer.set_exception(GuestUnreachableError(self._lost))
        self._opening.clear()


class _LoopReactor:
    """The event loop as the pump's reactor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        if readable:
            self._loop.add_reader(fd, readable)
        else:
            self._loop.remove_reader(fd)
        if writable:
            self._loop.add_writer(fd, writable)
        else:
            self._loop.remove_writer(fd)
