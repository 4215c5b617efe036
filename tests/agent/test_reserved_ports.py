"""Whom a guest's agent takes for the host's root: who calls from a reserved port of vsock."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack

import pytest

from kata_agent import reserved_ports
from kata_agent.constants import AGENT_PORT, FORWARD_PORT, STREAM_PORT
from kata_agent.guest import boot

needs_vsock = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/vsock"), reason="needs root, and a kernel with vsock"
)


class Arrivals:
    """A listening socket whose connections come from these addresses."""

    def __init__(self, *peers: tuple[int, int]) -> None:
        self.pairs = [socket.socketpair() for _ in peers]
        self._left = list(zip(peers, self.pairs, strict=True))

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        """As socket.accept."""
        if not self._left:
            raise OSError(errno.EINVAL, "nobody is left")
        peer, (_, theirs) = self._left.pop(0)
        return theirs, peer

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (end for pair in self.pairs for end in pair):
            one.close()


def acceptor(port: int, arrivals: Arrivals, *, reserved: bool) -> boot.VsockAcceptor:
    made = object.__new__(boot.VsockAcceptor)
    made._reserved = reserved and reserved_ports.is_guarded(port)
    made._sock = arrivals  # type: ignore[assignment]
    return made


def taken(port: int, *peers: tuple[int, int], reserved: bool) -> list[tuple[int, int]]:
    """The peers whose connections a port of the agent takes; the others' are closed at once."""
    found = []
    with Arrivals(*peers) as arrivals:
        listening = acceptor(port, arrivals, reserved=reserved)
        while True:
            try:
                connection, number = listening.accept()
            except OSError:
                break
            index = next(at for at, (_, theirs) in enumerate(arrivals.pairs) if theirs is connection)
            assert number == peers[index][1]
            found.append(peers[index])
        for peer, (ours, _) in zip(peers, arrivals.pairs, strict=True):
            ours.setblocking(False)
            if peer in found:
                with pytest.raises(BlockingIOError):
                    ours.recv(1)
            else:
                assert ours.recv(1) == b""
    return found


ROOT, USER = (socket.VMADDR_CID_HOST, 1023), (socket.VMADDR_CID_HOST, 1024)
OTHERS = [(cid, port) for cid in (1, 3, 4711) for port in (1, 1023, 1024)]


@pytest.mark.parametrize("port", [AGENT_PORT, FORWARD_PORT])
def test_calls_are_taken_from_the_hosts_root_only(port: int) -> None:
    assert taken(port, *OTHERS, USER, ROOT, USER, reserved=True) == [ROOT]


def test_streams_are_taken_from_the_host() -> None:
    """Each is known by its number, which a call has announced."""
    assert taken(STREAM_PORT, *OTHERS, USER, ROOT, reserved=True) == [USER, ROOT]


@pytest.mark.parametrize("port", [AGENT_PORT, FORWARD_PORT, STREAM_PORT])
def test_a_vmm_that_connects_for_the_host_chooses_ports_by_itself(port: int) -> None:
    assert taken(port, *OTHERS, USER, ROOT, reserved=False) == [USER, ROOT]


@needs_vsock
def test_each_socket_gets_a_port_of_its_own() -> None:
    with ExitStack() as stack:
        ports = []
        for _ in range(100):
            sock = stack.enter_context(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
            ports.append(reserved_ports.bind(sock))
            assert ports[-1] == sock.getsockname()[1]
        assert not any(map(reserved_ports.is_free, ports))
    assert len(set(ports)) == 100
    assert all(map(reserved_ports.is_free, ports))
    assert all(map(reserved_ports.is_reserved, ports))


def test_when_all_are_taken_it_says_so() -> None:
    class Taken:
        def bind(self, address: tuple[int, int]) -> None:
            tried.add(address[1])
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    tried: set[int] = set()
    with pytest.raises(OSError, match="all ports below 1024 are taken"):
        reserved_ports.bind(Taken())  # type: ignore[arg-type]
    assert tried == set(range(1, 1024))
