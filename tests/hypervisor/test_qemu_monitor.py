"""The monitor against a peer that the test writes byte by byte."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from fake_qemu import GREETING
from kata_hypervisor.qemu.qmp import MESSAGE_LIMIT, QmpClient, QmpError


class Peer:
    """The other end of a monitor's socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def receive(self) -> dict[str, object]:
        data = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        request: dict[str, object] = json.loads(data)
        return request

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[QmpClient, Peer]]:
    """A connected monitor and its peer."""
    ours, theirs = socket.socketpair()
    monitor, peer = QmpClient(ours), Peer(theirs)
    await peer.send(GREETING + b'{"return": {}}\n')
    await monitor.connect()
    assert (await peer.receive())["execute"] == "qmp_capabilities"
    yield monitor, peer
    await monitor.aclose()
    peer.close()
    assert ours.fileno() == -1


async def test_a_refusal_is_told_in_qemus_words(pair: tuple[QmpClient, Peer]) -> None:
    monitor, peer = pair
    asking = asyncio.ensure_future(monitor.execute("dance"))
    request = await peer.receive()
    await peer.send(
        json.dumps({"id": request["id"], "error": {"class": "GenericError", "desc": "no legs"}}).encode()
    )
    await peer.send(b"\n")
    with pytest.raises(QmpError, match='did not perform "dance": no legs'):
        await asking


@pytest.mark.parametrize(
    "end", [b"", b"garbage\n", b"x" * (MESSAGE_LIMIT + 1)], ids=["eof", "garbage", "endless"]
)
async def test_a_connection_that_ends_or_goes_wrong_fails_what_is_asked(
    pair: tuple[QmpClient, Peer], end: bytes
) -> None:
    monitor, peer = pair
    asking = asyncio.ensure_future(monitor.execute("stop"))
    await peer.receive()
    if end:
        with pytest.raises(QmpError):
            await asyncio.gather(asking, peer.send(end + b"\n"))
    else:
        peer.close()
        with pytest.raises(QmpError):
            await asking
    await monitor.wait_ended()
    with pytest.raises(QmpError):
        await monitor.execute("cont")


async def test_the_first_reason_stands_and_a_flood_is_not_kept(pair: tuple[QmpClient, Peer]) -> None:
    monitor, peer = pair
    assert monitor.shutdown_reason is None
    for reason in ("guest-reset", "host-error", "host-error"):
        await peer.send(
            b'{"event": "SHUTDOWN", "timestamp": {}, "data": {"reason": "%s"}}\n' % reason.encode()
        )
    peer.close()
    await monitor.wait_ended()
    assert monitor.shutdown_reason == "guest-reset"
    assert len(monitor._shutdown.history) == 1


@pytest.mark.parametrize("data", ['"x"', "{}", '{"reason": 3}', "null"])
async def test_an_event_of_another_shape_has_no_reason(pair: tuple[QmpClient, Peer], data: str) -> None:
    monitor, peer = pair
    await peer.send(b'{"event": "SHUTDOWN", "timestamp": {}, "data": %s}\n' % data.encode())
    peer.close()
    await monitor.wait_ended()
    assert monitor.shutdown_reason is None


async def test_hanging_up_ends_a_handshake_that_is_under_way() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        monitor = QmpClient(ours)
        connecting = asyncio.ensure_future(monitor.connect())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await monitor.aclose()
        with pytest.raises(QmpError):
            await connecting
        assert ours.fileno() == -1
