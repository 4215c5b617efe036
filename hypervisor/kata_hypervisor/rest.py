"""A client of a VMM's REST interface: JSON over HTTP/1.1 over one unix stream socket that is kept.

One request after the other, each answered in full or the connection is given up: nothing is sent twice, so
whatever a VMM refuses is refused. Descriptors travel with a request as SCM_RIGHTS, on its first byte.
HTTP is h11's (sans-I/O); here are bounds on what a VMM may send, time, and errors with the VMM's message.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import anyio
import h11

from kata_hypervisor.errors import HypervisorError

__all__ = ["RefusedError", "RestClient", "RestError", "Step"]

MESSAGE_LIMIT = 1024 * 1024
"""Bytes of the longest body that is read; the VMM may have been taken over by its guest."""

FAULT_LIMIT = 1000
"""Characters that are kept of a VMM's own message about a failure."""

_CHUNK = 64 * 1024


class Step(NamedTuple):
    """One request that describes the machine. purpose: what it is for, in messages."""

    purpose: str
    method: str
    path: str
    body: object = None
    fds: Sequence[int] = ()


class RestError(HypervisorError):
    """The VMM gave no usable answer: it closed the connection, was silent, or sent something else."""


class RefusedError(RestError):
    """The VMM answered that it did not do it. status: the HTTP status. fault: its own message, "" if none."""

    def __init__(self, message: str, status: int, fault: str) -> None:
        super().__init__(message)
        self.status = status
        self.fault = fault


class RestClient:
    """One VMM's REST interface.

    connection: a connected stream socket; owned from here on. vmm: how messages name the other end.
    base: what is put before each path. budget: seconds that an answer may take.
    """

    def __init__(self, connection: socket.socket, vmm: str, *, base: str = "", budget: float) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._vmm = vmm
        self._base = base
        self._budget = budget
        self._http = h11.Connection(h11.CLIENT)
        self._turn = anyio.Lock()
        self._given_up: str | None = None

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        fds: Sequence[int] = (),
        budget: float | None = None,
    ) -> Any:
        """Send one request and return the answer's JSON value, None where it has no body.

        body: any JSON value; None sends none. fds: descriptors that travel with it; they stay the caller's.
        budget: seconds, in place of the client's.

        Raises:
            RefusedError: the VMM answered with another status than 2xx.
            RestError: no answer within the budget, or none that is HTTP and JSON. Nothing more can be asked.
        """
        what = f"{method} {self._base}{path}"
        async with self._turn:
            if self._given_up is not None:
                raise RestError(f"cannot send {what} to {self._vmm}: {self._given_up}")
            seconds = self._budget if budget is None else budget
            try:
                with anyio.fail_after(seconds):
                    response, content = await self._exchange(method, self._base + path, body, fds)
            except TimeoutError:
                raise self._give_up(what, f"no answer within {seconds:g} s") from None
            except h11.RemoteProtocolError as error:
                raise self._give_up(what, f"its answer is not HTTP: {error}") from error
            except OSError as error:
                raise self._give_up(what, error.strerror or str(error)) from error
            except _BadAnswerError as error:
                raise self._give_up(what, str(error)) from None
            except BaseException:
                self._given_up = "an earlier request was cancelled before its answer"
                raise
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
            else:
                self._given_up = "it announced that it would close the connection"
        if not 200 <= response.status_code < 300:
            raise self._refusal(what, response.status_code, content)
        return self._value(what, content)

    async def change_connection(self, exchange: Callable[[socket.socket], Awaitable[socket.socket]]) -> None:
        """Go on over another connection to the same VMM. exchange: gets this one and returns that."""
        async with self._turn:
            self._socket = await exchange(self._socket)
            self._socket.setblocking(False)

    def _give_up(self, what: str, why: str) -> RestError:
        self._given_up = why
        return RestError(f"{self._vmm} gave no usable answer to {what}: {why}")

    async def _exchange(
        self, method: str, target: str, body: object, fds: Sequence[int]
    ) -> tuple[h11.Response, bytes]:
        await self._send(_encode(self._http, method, target, body), fds)
        response: h11.Response | None = None
        content = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._receive()
                if not data and response is None:
                    raise _BadAnswerError("it closed the connection")
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > MESSAGE_LIMIT:
                    raise _BadAnswerError(f"its answer is longer than {MESSAGE_LIMIT} bytes")
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None
                return response, bytes(content)

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if fds:
            await self._when_writable(lambda: socket.send_fds(self._socket, [data[:1]], list(fds)))
            data = data[1:]
        rest = memoryview(data)
        while rest:
            sent = await self._when_writable(lambda: self._socket.send(rest, socket.MSG_NOSIGNAL))  # noqa: B023
            rest = rest[sent:]

    async def _when_writable(self, send: Callable[[], int]) -> int:
        while True:
            try:
                return send()
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    async def _receive(self) -> bytes:
        while True:
            try:
                return self._socket.recv(_CHUNK)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)

    def _refusal(self, what: str, status: int, content: bytes) -> RefusedError:
        fault = _fault(content)
        detail = f": {fault}" if fault else ""
        return RefusedError(f"{self._vmm} refused {what} with status {status}{detail}", status, fault)

    def _value(self, what: str, content: bytes) -> Any:
        if not content.strip():
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._give_up(what, f"its answer is not JSON: {error}") from None

    async def aclose(self) -> None:
        """Close the connection; a request that is under way fails. Idempotent."""
        self._given_up = self._given_up or "its connection was closed"
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for an answer
        except OSError:
            pass  # the other end was quicker
        async with self._turn:
            self._socket.close()


class _BadAnswerError(Exception):
    """What came is no answer."""


def _encode(http: h11.Connection, method: str, target: str, body: object) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    headers = [("Host", "localhost"), ("Accept", "application/json")]
    if body is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
    request = h11.Request(method=method, target=target, headers=headers)
    parts = [http.send(request), http.send(h11.Data(data=content)), http.send(h11.EndOfMessage())]
    return b"".join(part or b"" for part in parts)


def _fault(content: bytes) -> str:
    """The VMM's message: Firecracker's {"fault_message": ...}, Cloud Hypervisor's list of causes, or text."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = content.decode("utf-8", errors="replace")
    if isinstance(value, dict) and "fault_message" in value:
        value = value["fault_message"]
    message = ": ".join(map(str, value)) if isinstance(value, list) else str(value)
    shown = "".join(char if char.isprintable() else " " for char in message)
    return " ".join(shown.split())[:FAULT_LIMIT]
