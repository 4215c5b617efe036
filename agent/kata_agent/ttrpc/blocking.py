"""A ttrpc server on threads, for the guest: nothing here costs start-up time.

Deadlines of callers are not enforced here, for a thread cannot be cancelled: the caller's side forgets the
call at its deadline and ignores the late answer.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping

from google.protobuf.message import Message

from kata_agent.ttrpc.envelope import (
    Call,
    Handler,
    Share,
    check_frame,
    error_frame,
    internal_error,
    open_request,
    response_frame,
)
from kata_agent.ttrpc.frames import Frame, FrameDecoder, ProtocolError
from kata_agent.ttrpc.status import Code, RpcError

BlockingFunction = Callable[..., Message]
BlockingHandler = Handler[BlockingFunction]

MAX_REQUESTS = 256
MAX_WAITS = 16384  # one for each process, more than which a guest hardly has
_READ_SIZE = 64 << 10
_current = threading.local()


def caller_timeout() -> float | None:
    """How many seconds the caller of the request that this thread serves waits; None: as long as it takes."""
    timeout: float | None = getattr(_current, "timeout", None)
    return timeout


def caller_patience() -> float | None:
    """Seconds for which the request that this thread serves may wait for something, so that its caller still
    learns for what; None: as long as it takes.
    """
    timeout = caller_timeout()
    return None if timeout is None else 0.9 * timeout


class BlockingServer:
    """Serves the handlers on any number of connections, each request in a thread of its own.

    A request of no share is answered by its connection's thread, so that it needs nothing that can run out.

    handlers: by (full service name, method name); called as `function(request)`, they return the response.
    log: takes a line of text. on_error: turns an unexpected exception of a handler into the answer.
    max_requests, max_waits: how many requests of each share may run at once over all connections; more are
        RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], BlockingHandler],
        *,
        log: Callable[[str], None],
        on_error: Callable[[str, Exception], RpcError] = internal_error,
        max_requests: int = MAX_REQUESTS,
        max_waits: int = MAX_WAITS,
    ) -> None:
        self._handlers = handlers
        self._log = log
        self._on_error = on_error
        self._free = {
            Share.WORK: threading.BoundedSemaphore(max_requests),
            Share.WAIT: threading.BoundedSemaphore(max_waits),
        }

    def serve(self, sock: socket.socket) -> None:
        """Serve one connection until the peer closes it or breaks the protocol; closes the socket.

        Requests that still run then go on to their end; their answers are dropped.
        """
        connection = _Connection(sock)
        decoder = FrameDecoder()
        try:
            while data := sock.recv(_READ_SIZE):
                for frame in decoder.feed(data):
                    self._take(connection, frame)
        except ProtocolError as error:
            self._log(f"ttrpc connection closed: {error}")
        except OSError as error:
            self._log(f"ttrpc connection lost: {error}")
        finally:
            connection.close()

    def _take(self, connection: _Connection, frame: Frame) -> None:
        if not check_frame(frame):
            return
        connection.begin(frame.stream_id)
        try:
            call = open_request(frame, self._handlers)
            free = self._free.get(call.handler.share)
            if free is not None and not free.acquire(blocking=False):
                raise RpcError(Code.RESOURCE_EXHAUSTED, f"{call.name}: too many requests at once")
        except RpcError as error:
            connection.finish(frame.stream_id, error_frame(frame.stream_id, error))
            return
        if free is None:
            connection.finish(frame.stream_id, self._run(frame.stream_id, call))
            return
        thread = threading.Thread(
            target=self._answer, args=(connection, frame.stream_id, call, free), name=call.name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the guest has no memory or pid left for a thread
            free.release()
            failure = RpcError(Code.RESOURCE_EXHAUSTED, f"{call.name}: {error}")
            connection.finish(frame.stream_id, error_frame(frame.stream_id, failure))

    def _answer(
        self,
        connection: _Connection,
        stream_id: int,
        call: Call[BlockingFunction],
        free: threading.BoundedSemaphore,
    ) -> None:
        try:
            connection.finish(stream_id, self._run(stream_id, call))
        except OSError as error:
            self._log(f"{call.name}: answer dropped: {error}")
        finally:
            free.release()

    def _run(self, stream_id: int, call: Call[BlockingFunction]) -> bytes:
        _current.timeout = call.timeout
        try:
            return response_frame(stream_id, call.name, call.handler.function(call.request))
        except RpcError as error:
            return error_frame(stream_id, error)
        except Exception as error:  # noqa: BLE001 - a handler's fault is its caller's answer
            failure = self._on_error(call.name, error)
            self._log(f"{call.name} failed: {type(error).__name__}: {error}")
            return error_frame(stream_id, failure)


class _Connection:
    """Writes whole frames, one at a time, and knows which stream ids are in use."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._active: set[int] = set()
        self._closed = False

    def begin(self, stream_id: int) -> None:
        if stream_id in self._active:
            raise ProtocolError(f"stream id {stream_id} used for two requests at once")
        self._active.add(stream_id)

    def finish(self, stream_id: int, answer: bytes) -> None:
        with self._lock:
            self._active.discard(stream_id)
            if not self._closed:
                self._sock.sendall(answer)

    def close(self) -> None:
        try:
            self._sock.shutdown(
                socket.SHUT_RDWR
            )  # wakes a thread that waits in sendall, which holds the lock
        except OSError:
            pass  # the peer was faster
        with self._lock:
            self._closed = True
            self._sock.close()
