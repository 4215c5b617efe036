"""Events about tasks, in order, to containerd's ttrpc address.

containerd may be away for a while (an upgrade, a crash): events wait in a queue and are sent when it is back.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable

import anyio
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.concurrency import finish, race
from kata_runtime.broker.errors import BrokerError
from kata_runtime.containerd_api import events_pb2, forward_pb2, types_pb2
from kata_runtime.pod.timestamps import timestamp

_log = logging.getLogger(__name__)

Connect = Callable[[], Awaitable[socket.socket]]

SERVICE = "containerd.services.events.ttrpc.v1.Events"
RETRY = (0.05, 2.0)
MAX_QUEUED = 10_000

_EXIT = "/tasks/exit"
_TOPICS: dict[type[Message], str] = {
    events_pb2.TaskCreate: "/tasks/create",
    events_pb2.TaskStart: "/tasks/start",
    events_pb2.TaskExit: _EXIT,
    events_pb2.TaskDelete: "/tasks/delete",
    events_pb2.TaskOOM: "/tasks/oom",
    events_pb2.TaskExecAdded: "/tasks/exec-added",
    events_pb2.TaskExecStarted: "/tasks/exec-started",
    events_pb2.TaskPaused: "/tasks/paused",
    events_pb2.TaskResumed: "/tasks/resumed",
}


def envelope(namespace: str, event: Message, now_ns: int) -> types_pb2.Envelope:
    """Wrap an event as containerd's exchange expects it; its type URL is the bare message name."""
    packed = Any(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())
    return types_pb2.Envelope(
        timestamp=timestamp(now_ns), namespace=namespace, topic=_TOPICS[type(event)], event=packed
    )


class EventPublisher:
    """Sends events one after the other; `publish` never waits and never fails.

    connect: opens a connection to containerd's ttrpc socket, raises OSError; None when nobody listens.
    """

    def __init__(self, connect: Connect | None, namespace: str) -> None:
        self._connect = connect
        self._namespace = namespace
        self._queue: deque[types_pb2.Envelope] = deque()
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()
        self._away = anyio.Event()  # set by a failure to reach containerd, until it is reached again
        self._client: Client | None = None

    def publish(self, event: Message) -> None:
        """Queue an event; when containerd is away until the queue is full, the oldest is dropped.

        An exit is never dropped: containerd waits for it. A guest can cause other events without limit.
        """
        if self._connect is None:
            return
        if len(self._queue) >= MAX_QUEUED:
            self._drop_oldest()
        self._queue.append(envelope(self._namespace, event, time.time_ns()))
        if self._idle.is_set():
            self._idle = anyio.Event()
        self._wake.set()

    def _drop_oldest(self) -> None:
        lost = next((waiting for waiting in self._queue if waiting.topic != _EXIT), None)
        if lost is not None:
            self._queue.remove(lost)
            _log.error("event queue is full: dropped %s", lost.topic)

    async def flush(self) -> None:
        """Wait until everything is sent, or containerd cannot be reached."""
        await race(self._idle.wait, self._away.wait)

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                await self._drain()
        finally:
            if self._client is not None:
                await finish(self._client.aclose())

    async def _drain(self) -> None:
        delay = RETRY[0]
        while self._queue:
            waiting = self._queue[0]
            if await self._send(waiting):
                if self._away.is_set():
                    self._away = anyio.Event()
                if self._queue and self._queue[0] is waiting:
                    self._queue.popleft()
                delay = RETRY[0]
            else:
                self._away.set()
                await anyio.sleep(delay)
                delay = min(delay * 2, RETRY[1])
        self._idle.set()

    async def _send(self, waiting: types_pb2.Envelope) -> bool:
        """Whether the event is dealt with: delivered, or refused by containerd for good."""
        try:
            if self._client is None or self._client.closed:
                assert self._connect is not None
                self._client = await Client.from_socket(await self._connect())
            request = forward_pb2.ForwardRequest(envelope=waiting)
            # As long as the connection lasts: one that is sent again could be known to containerd already.
            await self._client.call(SERVICE, "Forward", request, Empty)
        except RpcError as error:
            if error.code is Code.UNAVAILABLE:
                return False
            _log.error("containerd refused event %s: %s", waiting.topic, error)
        except (OSError, BrokerError):
            return False
        return True
