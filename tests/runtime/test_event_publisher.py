"""Events that wait: for containerd, and for a broker that cannot connect to it."""

from __future__ import annotations

import socket

import anyio
import pytest

from kata_runtime.broker.errors import BrokerError, BrokerLostError, RequestRefusedError
from kata_runtime.containerd_api import events_pb2
from kata_runtime.shim import events


@pytest.mark.parametrize("error", [BrokerLostError, RequestRefusedError, ConnectionRefusedError])
async def test_one_that_cannot_connect_tries_again_and_ends_nobody(
    monkeypatch: pytest.MonkeyPatch, error: type[BrokerError | OSError]
) -> None:
    monkeypatch.setattr(events, "RETRY", (0.001, 0.001))
    tries: list[int] = []
    enough = anyio.Event()

    async def connect() -> socket.socket:
        tries.append(1)
        if len(tries) == 3:
            enough.set()
        raise error("the broker (process 7) has exited")

    publisher = events.EventPublisher(connect, "test")
    async with anyio.create_task_group() as group:
        group.start_soon(publisher.run)
        publisher.publish(events_pb2.TaskOOM(container_id="web"))
        with anyio.fail_after(10):
            await enough.wait()
        group.cancel_scope.cancel()
