"""Host and guest over a real socketpair: streams end to end, a stalled one, and ends that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from kata_agent.mux.core import WINDOW, FrameType, ProtocolError
from kata_agent.mux.guest import Acceptor, MuxGuest
from kata_agent.mux.host import MuxHost
from kata_agent.transport import GuestUnreachableError

HELLO = struct.pack(">BII", FrameType.HELLO, 0, 8) + b"katamux\x01"


class Rig:
    """A host and a guest; the guest's thread ends when the host hangs up."""

    def __init__(self) -> None:
        self.host_sock, self.guest_sock = socket.socketpair()
        self.guest = MuxGuest(self.guest_sock.fileno())
        self.host = MuxHost(self.host_sock)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.guest.run()
        except Exception as error:  # noqa: BLE001 - a test looks at it
            self.error = error

    async def connect(self, acceptor: Acceptor, port: int) -> tuple[socket.socket, socket.socket]:
        """A stream's two ends: the host's non-blocking one and the guest's blocking one."""
        sock, number = await self.host.connect(port)
        peer, peer_number = await asyncio.to_thread(acceptor.accept)
        assert number == peer_number
        return sock, peer

    async def close(self) -> None:
        await self.host.aclose()
        await asyncio.to_thread(self.thread.join)
        self.guest_sock.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.thread.start()
    yield rig
    await rig.close()
    assert rig.error is None


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0)


async def read_all(sock: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), bytearray()
    while piece := await loop.sock_recv(sock, 1 << 18):
        data += piece
    return bytes(data)


def read_all_blocking(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(1 << 18):
        data += piece
    return bytes(data)


async def test_ready_waits_for_the_guest() -> None:
    rig = Rig()
    ready = asyncio.create_task(rig.host.ready())
    await asyncio.sleep(0.02)
    assert not ready.done()
    rig.thread.start()
    await ready
    await rig.close()


async def test_question_and_answer_with_half_close(rig: Rig) -> None:
    sock, peer = await rig.connect(rig.guest.listen(1024), 1024)
    with sock, peer:
        assert not sock.getblocking()
        assert peer.getblocking()
        await asyncio.get_running_loop().sock_sendall(sock, b"question")
        sock.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(read_all_blocking, peer) == b"question"
        peer.sendall(b"answer")
        peer.close()
        assert await read_all(sock) == b"answer"


async def test_nobody_listens(rig: Rig) -> None:
    for _ in range(2):
        with pytest.raises(GuestUnreachableError, match="nobody listens on guest port 7"):
            await rig.host.connect(7)
    rig.guest.listen(7)
    sock, _ = await rig.host.connect(7)
    sock.close()


async def test_twenty_megabytes_on_each_of_several_streams_while_one_is_stalled(rig: Rig) -> None:
    acceptor = rig.guest.listen(1027)
    loop = asyncio.get_running_loop()
    stalled, stalled_peer = await rig.connect(acceptor, 1027)
    stalled_peer.setblocking(False)
    filling = asyncio.create_task(loop.sock_sendall(stalled, bytes(8 << 20)))
    pairs = [await rig.connect(acceptor, 1027) for _ in range(3)]
    block = os.urandom(1 << 20)
    digest = hashlib.sha256(block * 20).digest()

    async def up(sock: socket.socket, peer: socket.socket) -> bytes:
        reading = asyncio.create_task(asyncio.to_thread(read_all_blocking, peer))
        for _ in range(20):
            await loop.sock_sendall(sock, block)
        sock.shutdown(socket.SHUT_WR)
        return hashlib.sha256(await reading).digest()

    async def down(sock: socket.socket, peer: socket.socket) -> bytes:
        def write() -> None:
            for _ in range(20):
                peer.sendall(block)
            peer.shutdown(socket.SHUT_WR)

        writing = asyncio.create_task(asyncio.to_thread(write))
        data = await read_all(sock)
        await writing
        return hashlib.sha256(data).digest()

    digests = await asyncio.gather(up(*pairs[0]), down(*pairs[1]), up(*pairs[2]), down(*pairs[2]))
    assert set(digests) == {digest}
    assert not filling.done()
    # What the guest holds of the stalled stream is its window; the rest waits at the host.
    assert all(len(local.backlog) <= WINDOW for local in rig.guest._pump._locals.values())
    stalled_peer.setblocking(True)
    received = asyncio.create_task(asyncio.to_thread(read_all_blocking, stalled_peer))
    await filling
    stalled.shutdown(socket.SHUT_WR)
    assert len(await received) == 8 << 20
    for sock in [stalled, stalled_peer, *(end for pair in pairs for end in pair)]:
        sock.close()


async def test_many_streams_at_once(rig: Rig) -> None:
    acceptor = rig.guest.listen(1)

    def echo(peer: socket.socket) -> None:
        with peer:
            peer.sendall(read_all_blocking(peer))

    def serve() -> None:
        for _ in range(50):
            threading.Thread(target=echo, args=(acceptor.accept()[0],)).start()

    serving = asyncio.create_task(asyncio.to_thread(serve))

    async def ask(text: bytes) -> bytes:
        sock, _ = await rig.host.connect(1)
        with sock:
            await asyncio.get_running_loop().sock_sendall(sock, text)
            sock.shutdown(socket.SHUT_WR)
            return await read_all(sock)

    texts = [b"%d" % number * 1000 for number in range(50)]
    assert await asyncio.gather(*map(ask, texts)) == texts
    await serving
    assert not rig.host._pump._locals


async def test_user_that_closes_with_data_coming_resets_the_stream(rig: Rig) -> None:
    sock, peer = await rig.connect(rig.guest.listen(1), 1)
    sock.close()

    def write() -> None:
        with peer:
            while True:
                peer.sendall(bytes(1 << 16))

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await asyncio.to_thread(write)


async def test_cancelled_connect_leaves_nothing(rig: Rig) -> None:
    acceptor = rig.guest.listen(1)
    connecting = asyncio.create_task(rig.host.connect(1))
    await rig.host.ready()
    await until(lambda: bool(rig.host._opening))
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    peer, _ = await asyncio.to_thread(acceptor.accept)
    assert await asyncio.to_thread(peer.recv, 1) == b""
    peer.close()
    assert not rig.host._opening
    assert not rig.host._mux._streams


async def test_lost_port_ends_everything_at_once() -> None:
    rig = Rig()
    rig.thread.start()
    acceptor = rig.guest.listen(1)
    sock, peer = await rig.connect(acceptor, 1)
    rig.host_sock.shutdown(socket.SHUT_RDWR)
    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    with pytest.raises(GuestUnreachableError, match="serial port is closed"):
        await rig.host.connect(1)
    with pytest.raises(GuestUnreachableError):
        await rig.host.ready()
    assert await asyncio.to_thread(peer.recv, 1) == b""
    await asyncio.to_thread(rig.thread.join)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            acceptor.accept()
    sock.close()
    peer.close()
    await rig.close()


async def test_lost_port_fails_those_who_wait() -> None:
    ours, theirs = socket.socketpair()
    host = MuxHost(ours)
    ready = asyncio.create_task(host.ready())
    connecting = asyncio.create_task(host.connect(1))
    await asyncio.sleep(0)
    theirs.close()
    for task in (ready, connecting):
        with pytest.raises(GuestUnreachableError):
            await task


async def test_answer_pending_when_the_port_is_lost() -> None:
    ours, theirs = socket.socketpair()
    host = MuxHost(ours)
    theirs.sendall(HELLO)
    connecting = asyncio.create_task(host.connect(1))
    await host.ready()
    await until(lambda: bool(host._opening))
    theirs.close()
    with pytest.raises(GuestUnreachableError):
        await connecting


@pytest.mark.parametrize(
    "data", [b"login: and more", HELLO + HELLO, HELLO + struct.pack(">BII", FrameType.DATA, 1, 1 << 30)]
)
async def test_host_ends_a_port_that_does_not_speak_the_protocol(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    host = MuxHost(ours)
    theirs.sendall(data)
    await until(lambda: host._lost is not None)
    with pytest.raises(GuestUnreachableError, match="serial port is closed: "):
        await host.ready()
    theirs.close()


def test_guest_names_what_the_host_did_wrong() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guest = MuxGuest(ours.fileno())
        theirs.sendall(b"garbage, not a HELLO")
        with pytest.raises(ProtocolError):
            guest.run()
