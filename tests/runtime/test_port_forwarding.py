"""Port-forwarding with both of its ends: the runtime's, and the agent's in a thread of this process.

There is no namespace whose rule redirects: the port that was meant is given by the test.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest

from kata_agent.constants import FORWARD_ANSWER, FORWARD_PORT, FORWARD_REQUEST
from kata_agent.guest import forwarding as guest
from kata_agent.transport import GuestUnreachableError
from kata_runtime.network import forwarding
from kata_runtime.pod.port_forwarding import Forwarder

pytestmark = pytest.mark.anyio


class Streams:
    """The way to the guest: connects, and is the agent's acceptor."""

    def __init__(self) -> None:
        self._streams: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):
            guest.serve_forever(self)

    def accept(self) -> tuple[socket.socket, int]:
        """See Acceptor."""
        if (stream := self._streams.get()) is None:
            raise ConnectionError("the test is over")
        return stream, 0

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See GuestTransport."""
        assert port == FORWARD_PORT
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._streams.put(theirs)
        return ours, 0

    def close(self) -> None:
        self._streams.put(None)
        self._thread.join()


@pytest.fixture
def streams() -> Iterator[Streams]:
    with contextlib.closing(Streams()) as made:
        yield made


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None], address: str = "127.0.0.1") -> Iterator[int]:
    """A server in the "guest" for one connection; gives its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def serve() -> None:
        with listener.accept()[0] as connection:
            answer(connection)

    with socket.create_server((address, 0), family=family) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


@contextlib.asynccontextmanager
async def forwarder(
    connect: Callable[..., object], port: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[int]:
    """A forwarder whose connections all mean that port; gives its own."""
    monkeypatch.setattr(forwarding, "original_port", lambda _: port)
    listeners = [socket.socket(fileno=fd) for fd in forwarding.listeners()]
    made = Forwarder(listeners, connect)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.serve)
        yield listeners[0].getsockname()[1]
        tasks.cancel_scope.cancel()
    made.close()


def ask(port: int, data: bytes = b"", address: str = "127.0.0.1") -> bytes:
    """Connect, send, end that direction, and read to the end."""
    with socket.create_connection((address, port), timeout=30) as connection:
        connection.sendall(data)
        with contextlib.suppress(OSError):  # it was reset already, as reading says
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


async def test_all_bytes_come_both_ways(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 20000
    with serving(lambda connection: connection.sendall(read_all(connection)[::-1])) as port:
        async with forwarder(streams.connect, port, monkeypatch) as relay:
            assert await anyio.to_thread.run_sync(ask, relay, data) == data[::-1]


async def test_a_server_that_speaks_first_and_ends(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda connection: connection.sendall(b"welcome")) as port:
        async with forwarder(streams.connect, port, monkeypatch) as relay:
            assert await anyio.to_thread.run_sync(ask, relay) == b"welcome"


async def test_the_stream_ends_both_ways_with_the_servers_answer(streams: Streams) -> None:
    with serving(lambda connection: connection.sendall(b"done")) as port:
        stream, _ = await streams.connect(FORWARD_PORT)
        stream.setblocking(True)
        with stream:
            stream.sendall(FORWARD_REQUEST.pack(4, port))
            assert read_all(stream) == FORWARD_ANSWER.pack(0) + b"done"
            with pytest.raises(BrokenPipeError):
                stream.sendall(b"more")


async def test_the_other_family_is_tried(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda connection: connection.sendall(b"six"), "::1") as port:
        async with forwarder(streams.connect, port, monkeypatch) as relay:
            assert await anyio.to_thread.run_sync(ask, relay) == b"six"


async def test_a_closed_port_resets(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    async with forwarder(streams.connect, closed_port(), monkeypatch) as relay:
        with pytest.raises(ConnectionResetError):
            await anyio.to_thread.run_sync(ask, relay)


async def test_a_guest_that_is_gone_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(port: int) -> tuple[socket.socket, int]:
        raise GuestUnreachableError("nobody listens there")

    async with forwarder(connect, 80, monkeypatch) as relay:
        for _ in range(2):  # and it goes on
            with pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(ask, relay)


async def test_a_guest_that_answers_nothing_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(port: int) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.shutdown(socket.SHUT_WR)
        held.append(theirs)
        return ours, 0

    held: list[socket.socket] = []
    async with forwarder(connect, 80, monkeypatch) as relay:
        with pytest.raises(ConnectionResetError):
            await anyio.to_thread.run_sync(ask, relay)
    for sock in held:
        sock.close()
