"""The ways into the guest, against fake VMMs and a fake kernel, and over loopback vsock where it exists."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from kata_agent.mux.guest import MuxGuest
from kata_agent.transport import GuestTransport, GuestUnreachableError, open_stream
from kata_agent.transports import (
    Dial,
    HybridVsockTransport,
    SerialTransport,
    VsockTransport,
    dial_unix,
    dial_vsock,
)


class Vmm:
    """A hybrid vsock socket that treats each connection as configured."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[bytes] = []
        self.reply: Callable[[socket.socket], None] = lambda sock: sock.sendall(b"OK 1073741824\n")
        self.kept: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.asked.append(sock.recv(100))
            self.reply(sock)
            self.kept.append(sock)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        for sock in [self.listener, *self.kept]:
            sock.close()


def hybrid(path: str) -> HybridVsockTransport:
    return HybridVsockTransport(dial_unix(path), path)


@pytest.fixture
def directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        yield directory


@pytest.fixture
async def vmm(directory: str) -> AsyncIterator[Vmm]:
    vmm = Vmm(os.path.join(directory, "v"))
    yield vmm
    vmm.close()


async def test_hybrid_handshake_reads_the_reply_and_no_more(vmm: Vmm) -> None:
    vmm.reply = lambda sock: sock.sendall(b"OK 1073741824\nfirst bytes of the stream")
    transport: GuestTransport = hybrid(vmm.path)
    sock, number = await transport.connect(1024)
    with sock:
        assert number == 1073741824
        assert not sock.getblocking()
        assert vmm.asked == [b"CONNECT 1024\n"]
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"first bytes of the stream"
    await transport.aclose()


async def test_hybrid_reply_in_pieces(vmm: Vmm) -> None:
    def reply(sock: socket.socket) -> None:
        for byte in b"OK 7\n":
            sock.sendall(bytes([byte]))

    vmm.reply = reply
    sock, number = await hybrid(vmm.path).connect(1)
    assert number == 7
    sock.close()


async def test_hybrid_without_a_listener_in_the_guest(vmm: Vmm) -> None:
    vmm.reply = lambda sock: sock.close()
    with pytest.raises(GuestUnreachableError, match="guest port 5 behind"):
        await hybrid(vmm.path).connect(5)


async def test_a_guest_that_does_not_answer_is_waited_for_as_long_as_the_asker_says(vmm: Vmm) -> None:
    vmm.reply = lambda sock: None
    with pytest.raises(GuestUnreachableError, match=r"port 5 of the guest did not answer within 0\.05 s"):
        await open_stream(hybrid(vmm.path), 5, 0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.7):  # more than any try once had
            await hybrid(vmm.path).connect(5)


async def test_a_connection_that_the_kernel_gives_up_is_tried_again() -> None:
    errors = [errno.ETIMEDOUT, errno.ETIMEDOUT, None]
    made: list[socket.socket] = []

    async def dial(port: int) -> socket.socket:
        one, _ = dialed(errors.pop(0))
        made.append(await one(port))
        return made[-1]

    sock, number = await open_stream(VsockTransport(dial, "guest 42"), 1024, 60)
    with sock:
        assert number == 4711
    assert len(made) == 3
    errors.append(errno.ECONNRESET)
    with pytest.raises(GuestUnreachableError, match="reset"):
        await open_stream(VsockTransport(dial, "guest 42"), 1024, 60)


@pytest.mark.parametrize("reply", [b"NO 1\n", b"OK \n", b"OK -1\n", b"OK 1" * 100, b"\n", b"OK 1 2\n"])
async def test_hybrid_answer_that_is_none(vmm: Vmm, reply: bytes) -> None:
    vmm.reply = lambda sock: sock.sendall(reply)
    with pytest.raises(ConnectionError, match="not a hybrid vsock socket") as caught:
        await hybrid(vmm.path).connect(5)
    assert not isinstance(caught.value, GuestUnreachableError)


async def test_hybrid_socket_missing_or_dead(directory: str) -> None:
    path = os.path.join(directory, "v")
    with pytest.raises(GuestUnreachableError, match="No such file"):
        await hybrid(path).connect(1)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(GuestUnreachableError, match="refused"):
        await hybrid(path).connect(1)


async def test_hybrid_socket_whose_queue_is_full(directory: str) -> None:
    path = os.path.join(directory, "v")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(GuestUnreachableError):
            await hybrid(path).connect(1)


async def test_failure_that_is_not_the_guests_is_not_retried(directory: str) -> None:
    with pytest.raises(OSError, match="too long"):
        await hybrid("x" * 200).connect(1)


async def test_serial_waits_for_the_guest_and_connects() -> None:
    ours, theirs = socket.socketpair()
    transport: GuestTransport = SerialTransport(ours)
    guest = MuxGuest(theirs.fileno())
    acceptor = guest.listen(1024)
    connecting = asyncio.create_task(transport.connect(1024))
    await asyncio.sleep(0.02)
    assert not connecting.done()
    thread = threading.Thread(target=guest.run)
    thread.start()
    sock, number = await connecting
    peer, peer_number = await asyncio.to_thread(acceptor.accept)
    assert number == peer_number
    peer.sendall(b"hello")
    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"hello"
    await transport.aclose()
    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""
    await asyncio.to_thread(thread.join)
    for end in (sock, peer, theirs):
        end.close()


def dialed(error: int | None) -> tuple[Dial, list[socket.socket]]:
    """A dial of vsock that ends with the given error: hosts without vhost-vsock have no real one."""
    made: list[socket.socket] = []

    class Vsock(socket.socket):
        def getsockopt(self, *_: int) -> int:  # type: ignore[override]
            return error or 0

        def getsockname(self) -> tuple[int, int]:
            return 2, 4711

    async def dial(port: int) -> socket.socket:
        assert port == 1024
        made.append(Vsock(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        return made[-1]

    return dial, made


@pytest.mark.parametrize(
    "error",
    [errno.ECONNRESET, errno.ETIMEDOUT, errno.ENODEV, errno.ECONNREFUSED, errno.EHOSTUNREACH],
)
async def test_vsock_guest_that_is_not_there(error: int) -> None:
    dial, made = dialed(error)
    with pytest.raises(GuestUnreachableError, match="vsock port 1024 of guest 42"):
        await VsockTransport(dial, "guest 42").connect(1024)
    assert [sock.fileno() for sock in made] == [-1]


async def test_vsock_that_cannot_be_dialed() -> None:
    async def dial(port: int) -> socket.socket:
        raise OSError(errno.ENODEV, "no such device")

    with pytest.raises(GuestUnreachableError, match="vsock port 1024 of guest 42: no such device"):
        await VsockTransport(dial, "guest 42").connect(1024)


async def test_vsock_other_failure() -> None:
    dial, made = dialed(errno.EACCES)
    with pytest.raises(PermissionError):
        await VsockTransport(dial, "guest 42").connect(1024)
    assert [sock.fileno() for sock in made] == [-1]


async def test_vsock_number_is_the_local_port() -> None:
    dial, made = dialed(None)
    sock, number = await VsockTransport(dial, "guest 42").connect(1024)
    with sock:
        assert sock is made[0]
        assert number == 4711


def local_cid() -> int | None:
    import fcntl

    try:
        with open("/dev/vsock", "rb") as device:
            return int(struct.unpack("I", fcntl.ioctl(device, 0x7B9, b"\0\0\0\0"))[0])
    except OSError:
        return None


@pytest.mark.skipif(local_cid() is None, reason="no /dev/vsock (vsock_loopback) on this host")
async def test_vsock_over_loopback() -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        port = listener.getsockname()[1]
        try:
            sock, number = await VsockTransport(dial_vsock(1), "this host").connect(port)
        except GuestUnreachableError:
            pytest.skip("vsock_loopback is not loaded")
        peer, (_, peer_port) = listener.accept()
        with sock, peer:
            assert number == peer_port
