"""A ttrpc server on asyncio: unary calls, each in a task of its own."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping

from google.protobuf.message import Message

from kata_agent.ttrpc import envelope
from kata_agent.ttrpc.connection import FrameConnection
from kata_agent.ttrpc.envelope import (
    Call,
    check_frame,
    error_frame,
    internal_error,
    open_request,
    response_frame,
)
from kata_agent.ttrpc.frames import Frame, ProtocolError
from kata_agent.ttrpc.status import Code, RpcError

logger = logging.getLogger(__name__)

AsyncFunction = Callable[..., Awaitable[Message]]
Handler = envelope.Handler[AsyncFunction]

MAX_REQUESTS = 1024
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE = 0.2  # seconds until accept is tried again when the host has no descriptors or memory


class Server:
    """Serves the handlers on any number of connections.

    handlers: by (full service name, method name); `await function(request)` returns the response.
    on_error: turns an unexpected exception of a handler into the answer; it is called with
        "service/method" and the exception, and may log it. By default it is logged and answered as INTERNAL.
    max_requests: how many requests of one connection may run at once; more are RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        *,
        on_error: Callable[[str, Exception], RpcError] | None = None,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self._handlers = handlers
        self._on_error = on_error or _log_error
        self._max_requests = max_requests
        self._connections: set[_Connection] = set()

    async def answered(self) -> None:
        """Return when every request that runs now has been answered, or its connection has ended."""
        running = {task for connection in self._connections for task in connection.requests}
        if running:
            await asyncio.wait(running)

    async def serve(self, listener: socket.socket) -> None:
        """Accept and serve connections until cancelled, which ends them all; the listener stays open."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as connections:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError as error:
                    await _after_accept_failed(error)
                    continue
                task = connections.create_task(self.serve_connection(sock))
                # Should it be cancelled before it began, nothing of it runs.
                task.add_done_callback(functools.partial(_close, sock))

    async def serve_connection(self, sock: socket.socket) -> None:
        """Serve one connection until the peer closes it; owns the socket.

        Requests that run when the connection ends are cancelled, and have ended when this returns.
        """
        connection = _Connection(self._handlers, self._on_error, self._max_requests)
        self._connections.add(connection)
        try:
            await connection.run(sock)
        finally:
            self._connections.discard(connection)


class _Connection:
    """One connection and the requests that run on it."""

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        on_error: Callable[[str, Exception], RpcError],
        max_requests: int,
    ) -> None:
        self._handlers = handlers
        self._on_error = on_error
        self._max_requests = max_requests
        self._frames = FrameConnection(self._take, self._on_lost, strict=True)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def requests(self) -> list[asyncio.Task[None]]:
        """Those that have not been answered."""
        return list(self._tasks.values())

    async def run(self, sock: socket.socket) -> None:
        try:
            await self._frames.open(sock)
            await self._frames.wait_closed()
        finally:
            self._frames.close()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _on_lost(self, reason: Exception | None) -> None:
        if isinstance(reason, ProtocolError):
            logger.warning("ttrpc connection closed: %s", reason)

    def _take(self, frame: Frame) -> None:
        if not check_frame(frame):
            return
        stream = frame.stream_id
        if stream in self._tasks:
            raise ProtocolError(f"stream id {stream} used for two requests at once")
        try:
            call = open_request(frame, self._handlers)
            if len(self._tasks) >= self._max_requests:
                raise RpcError(Code.RESOURCE_EXHAUSTED, f"{call.name}: too many requests at once")
        except RpcError as error:
            self._frames.send_now(error_frame(stream, error))
            return
        task = asyncio.create_task(self._answer(stream, call), name=call.name)
        self._tasks[stream] = task
        task.add_done_callback(lambda _: self._tasks.pop(stream))

    async def _answer(self, stream: int, call: Call[AsyncFunction]) -> None:
        answer = await self._run(stream, call)
        try:
            await self._frames.send(answer)
        except ConnectionError:
            logger.debug("%s: answer dropped, the connection is closed", call.name)

    async def _run(self, stream: int, call: Call[AsyncFunction]) -> bytes:
        deadline = asyncio.timeout(call.timeout)
        try:
            async with deadline:
                return response_frame(stream, call.name, await call.handler.function(call.request))
        except RpcError as error:
            return error_frame(stream, error)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Not this request was cancelled, but something that its handler waited for.
            return error_frame(stream, RpcError(Code.CANCELLED, f"{call.name}: cancelled"))
        except Exception as error:  # noqa: BLE001 - a handler's fault is its caller's answer
            if isinstance(error, TimeoutError) and deadline.expired():
                message = f"{call.name}: not done within the {call.timeout:g} s that the caller allows"
                return error_frame(stream, RpcError(Code.DEADLINE_EXCEEDED, message))
            return error_frame(stream, self._on_error(call.name, error))


def _close(sock: socket.socket, _: asyncio.Task[None]) -> None:
    sock.close()


def _log_error(name: str, error: Exception) -> RpcError:
    logger.error("%s failed", name, exc_info=error)
    return internal_error(name, error)


async def _after_accept_failed(error: OSError) -> None:
    """Let a failed accept be tried again, or raise what no retry mends."""
    if error.errno in _OUT_OF_RESOURCES:
        logger.warning("cannot accept a ttrpc connection: %s", error)
        await asyncio.sleep(_ACCEPT_PAUSE)
    elif error.errno != errno.ECONNABORTED:
        raise error
