"""The shim's end of the socket to its broker: requests with their replies, and notices in between."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, cast

import anyio

from kata_hypervisor.concurrency import uninterrupted
from kata_runtime.broker import messages
from kata_runtime.broker.errors import BrokerLostError, RequestFailedError, RequestRefusedError
from kata_runtime.broker.operations.declaration import Operation, Reply

if TYPE_CHECKING:
    from kata_runtime.broker.messages import Message

P = ParamSpec("P")

_log = logging.getLogger(__name__)


class _Pending:
    """A request without its reply."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.message: Message = {}
        self.descriptors: list[int] = []


class RequestChannel:
    """Made within a running event loop, which reads the socket from then on.

    reason: why no reply comes once the channel is lost; the broker may say more than is known at first.
    gave_up: whether it is lost because the broker stands still: it may not have exited.
    on_notice: called with each message that is no reply. on_lost: called once, when the broker has closed its
    end, or has not answered for `patience` seconds.
    """

    def __init__(
        self,
        sock: socket.socket,
        reason: str,
        on_notice: Callable[[Message], None],
        on_lost: Callable[[], None],
        *,
        patience: Callable[[], float],
    ) -> None:
        self.reason = reason
        self.gave_up = False
        self._socket = sock
        self._socket.setblocking(False)
        self._on_notice = on_notice
        self._on_lost = on_lost
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._receive)
        self._sending = anyio.Lock()
        self._next = 1
        self._pending: dict[int, _Pending] = {}
        self._open = True

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._open

    async def request(self, operation: Operation[P], *_: P.args, **arguments: P.kwargs) -> Reply:
        """Ask for an operation; returns its reply, whose descriptors are the caller's to close.

        A caller that is cancelled meanwhile gets the reply, and the cancellation at its next await: what was
        asked for either happened or did not, and who asked must know in order to undo it. A broker that
        stands still can do nothing else for the sandbox either: when its time is over, it is lost.

        Raises:
            BrokerLostError, RequestRefusedError, RequestFailedError: see `Broker`.
        """
        descriptors = cast("Sequence[int]", arguments.pop("descriptors", ()))
        number, pending = self._next, _Pending()
        self._next += 1
        try:
            packet = messages.encode({"id": number, "op": operation.name, **arguments})
        except messages.MessageError as error:
            raise RequestRefusedError(f"{operation.name}: {error}") from None
        self._pending[number] = pending
        await uninterrupted(self._exchange(operation.name, number, pending, packet, descriptors))
        return self._result(pending)

    async def _exchange(
        self, name: str, number: int, pending: _Pending, packet: bytes, descriptors: Sequence[int]
    ) -> None:
        seconds = self._patience()
        try:
            async with asyncio.timeout(seconds) as deadline:
                await self._send(packet, descriptors)
                await pending.answered.wait()
        except TimeoutError:
            if not deadline.expired():
                raise
            if self._open and not pending.answered.is_set():
                self.gave_up = True
                self.reason = f"the broker did not answer the request {name} within {seconds:g} s"
                self._lose()
        except BaseException:  # the event loop is closed
            messages.close_all(pending.descriptors)
            raise
        finally:
            self._pending.pop(number, None)

    def _result(self, pending: _Pending) -> Reply:
        match pending.message:
            case {"result": dict() as result}:
                return Reply(*pending.descriptors, **result)
            case {"error": {"kind": "refused", "message": message}}:
                raise RequestRefusedError(message)
            case {"error": {"message": message, "errno": number}}:
                raise RequestFailedError(message, number)
        raise BrokerLostError(self.reason)

    async def _send(self, packet: bytes, descriptors: Sequence[int]) -> None:
        async with self._sending:
            while self._open:
                try:
                    messages.send(self._socket, packet, descriptors)
                except BlockingIOError:
                    await anyio.wait_writable(self._socket)
                except ConnectionError:
                    self._receive()  # the last message says why, and then comes the end of the stream
                else:
                    return
        raise BrokerLostError(self.reason)

    def _receive(self) -> None:
        """Take every message that is there. Called by the event loop."""
        try:
            while True:
                try:
                    message, descriptors = messages.receive(self._socket)
                except messages.DescriptorsLostError as error:
                    described = {"message": str(error), "errno": error.errno}
                    message, descriptors = {**error.message, "result": None, "error": described}, []
                if "id" in message:
                    self._on_reply(message, descriptors)
                else:
                    self._on_notice(message)
        except BlockingIOError:
            return
        except messages.EndOfStream:
            self._lose()
        except messages.MessageError as error:
            self.reason = f"{self.reason}: it sent what is no message: {error}"
            self._lose()

    def _on_reply(self, message: Message, descriptors: list[int]) -> None:
        pending = self._pending.pop(message["id"], None)
        if pending is None:
            messages.close_all(descriptors)
            _log.warning("the broker has answered request %s, which nobody waits for", message["id"])
            return
        pending.message, pending.descriptors = message, descriptors
        pending.answered.set()

    def _lose(self) -> None:
        self._open = False
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._on_lost()
        for pending in self._pending.values():
            pending.answered.set()
