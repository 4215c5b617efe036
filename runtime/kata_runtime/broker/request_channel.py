"""The shim's end of the socket to its broker: requests with their replies, and notices in between."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, cast

from kata_hypervisor.concurrency import uninterrupted
from kata_runtime.broker import messages
from kata_runtime.broker.errors import BrokerLostError, RequestFailedError, RequestRefusedError
from kata_runtime.broker.operations.declaration import Operation, Reply

if TYPE_CHECKING:
    from kata_runtime.broker.messages import Message

    Answer: TypeAlias = asyncio.Future[tuple[Message, list[int]] | None]
    """A reply and its descriptors; None where none comes any more."""

P = ParamSpec("P")

_log = logging.getLogger(__name__)

SOON_US = 1000
"""Microseconds for which the event loop stands still for an answer: most come sooner, and to be woken by the
loop costs several times what they do. The kernel rounds it up to a tick or two."""


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
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, SOON_US))
        self._on_notice = on_notice
        self._on_lost = on_lost
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._receive)
        self._unsent: deque[tuple[bytes, Sequence[int], Answer]] = deque()
        self._next = 1
        self._pending: dict[int, Answer] = {}
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
        number, answer = self._next, cast("Answer", self._loop.create_future())
        self._next += 1
        try:
            packet = messages.encode({"id": number, "op": operation.name, **arguments})
        except messages.MessageError as error:
            raise RequestRefusedError(f"{operation.name}: {error}") from None
        if not self._open:
            raise BrokerLostError(self.reason)
        self._pending[number] = answer
        limit = self._limit(operation.name, answer)
        self._unsent.append((packet, descriptors, answer))
        if len(self._unsent) == 1:  # others wait for the socket
            self._send()
        while self._open and not answer.done() and self._take():
            pass
        try:
            # No task and no timeout of its own, each of which would cost as much as all else of it.
            return self._result(await uninterrupted(answer))
        finally:
            limit.cancel()
            self._pending.pop(number, None)

    def _limit(self, name: str, answer: Answer) -> asyncio.TimerHandle:
        """Give the broker up when it has not answered in time."""
        seconds = self._patience()

        def give_up() -> None:
            if self._open and not answer.done():
                self.gave_up = True
                self.reason = f"the broker did not answer the request {name} within {seconds:g} s"
                self._lose()

        return self._loop.call_later(seconds, give_up)

    def _result(self, answer: tuple[Message, list[int]] | None) -> Reply:
        if answer is None:
            raise BrokerLostError(self.reason)
        message, descriptors = answer
        match message:
            case {"result": dict() as result}:
                return Reply(*descriptors, **result)
            case {"error": {"kind": "refused", "message": message}}:
                raise RequestRefusedError(message)
            case {"error": {"message": message, "errno": number}}:
                raise RequestFailedError(message, number)
        raise BrokerLostError(self.reason)

    def _send(self) -> None:
        """Send what waits, as long as the socket takes it."""
        while self._unsent:
            packet, descriptors, answer = self._unsent[0]
            try:
                messages.send(self._socket, packet, descriptors, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._send_on)
                return
            except ConnectionError:
                self._receive()  # the last message says why, and then comes the end of the stream
                return
            except OSError as error:
                answer.set_exception(error)
            self._unsent.popleft()

    def _send_on(self) -> None:
        """The socket takes more. Called by the event loop."""
        self._loop.remove_writer(self._socket)
        self._send()

    def _receive(self) -> None:
        """Take every message that is there. Called by the event loop."""
        while self._open and self._take(socket.MSG_DONTWAIT):
            pass

    def _take(self, flags: int = 0) -> bool:
        """Take one message; False where none is there, or comes soon. flags: of recv(2)."""
        try:
            message, descriptors = messages.receive(self._socket, flags)
        except messages.DescriptorsLostError as error:
            described = {"message": str(error), "errno": error.errno}
            message, descriptors = {**error.message, "result": None, "error": described}, []
        except BlockingIOError:
            return False
        except messages.EndOfStream:
            self._lose()
            return False
        except messages.MessageError as error:
            self.reason = f"{self.reason}: it sent what is no message: {error}"
            self._lose()
            return False
        if "id" in message:
            self._on_reply(message, descriptors)
        else:
            self._on_notice(message)
        return True

    def _on_reply(self, message: Message, descriptors: list[int]) -> None:
        answer = self._pending.pop(message["id"], None)
        if answer is None or answer.done():
            messages.close_all(descriptors)
            _log.warning("the broker has answered request %s, which nobody waits for", message["id"])
            return
        answer.set_result((message, descriptors))

    def _lose(self) -> None:
        self._open = False
        self._unsent.clear()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._on_lost()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_result(None)
