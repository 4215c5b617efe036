"""containerd's end of the events: a service that remembers what came, and can be away."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import anyio
from google.protobuf import symbol_database
from google.protobuf.empty_pb2 import Empty

from kata_agent.ttrpc.server import Handler, Server
from kata_agent.ttrpc.service import service_of
from kata_runtime.containerd_api import events_pb2, forward_pb2, types_pb2
from patience import PATIENCE

KNOWN = events_pb2.DESCRIPTOR
"""Imported for its message types, by whose names events come."""


class EventSink:
    """containerd's event service. events: what came, in order, as (topic, message)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[tuple[str, Any]] = []
        self.envelopes: list[types_pb2.Envelope] = []
        self._news = anyio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    async def __aenter__(self) -> EventSink:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def open(self) -> None:
        """Begin, or begin again, to listen."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(128)
        service = service_of(forward_pb2.DESCRIPTOR.services_by_name["Events"])
        handler = Handler(service.methods["Forward"].request, self._forward)
        server = Server({(service.full_name, "Forward"): handler})
        self._serving = asyncio.create_task(server.serve(self._listener))

    async def close(self) -> None:
        """Be away: existing connections end, new ones are refused."""
        if self._serving is None or self._listener is None:
            return
        self._serving.cancel()
        await asyncio.wait([self._serving])
        self._listener.close()
        self.path.unlink()
        self._serving = self._listener = None

    async def _forward(self, request: Any) -> Empty:
        envelope = request.envelope
        kind = symbol_database.Default().GetSymbol(envelope.event.type_url)
        self.envelopes.append(envelope)
        self.events.append((envelope.topic, kind.FromString(envelope.event.value)))
        self._news.set()
        self._news = anyio.Event()
        return Empty()

    def topics(self, container_id: str) -> list[str]:
        """The topics of a container's events so far, in order, without their common prefix."""
        return [
            topic.removeprefix("/tasks/")
            for topic, event in self.events
            if event.container_id == container_id
        ]

    def of(self, container_id: str, topic: str) -> list[Any]:
        """A container's events of one kind."""
        return [
            event
            for name, event in self.events
            if name == f"/tasks/{topic}" and event.container_id == container_id
        ]

    async def wait_for(self, container_id: str, topic: str, count: int = 1) -> Any:
        """Wait until that many events of this kind came; returns the last of them."""
        with anyio.fail_after(PATIENCE):
            while len(found := self.of(container_id, topic)) < count:
                await self._news.wait()
        return found[count - 1]
