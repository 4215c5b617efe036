"""Copies between pipes and sockets: whole, both ends, and with peers that stall or leave."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from kata_agent.constants import NO_STREAM
from kata_agent.guest import streams
from kata_agent.guest.errors import NotFoundError
from kata_agent.guest.stdio import CalledStdio, Ports, StreamedStdio
from kata_agent.guest.streams import StreamTable
from kata_agent.guest.wiring import Ends, Wiring
from kata_agent.ttrpc.status import Code, RpcError

DATA = os.urandom(5 << 20)


def start(function: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def finish(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.close(descriptor)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The host's end, and the agent's: non-blocking, as StreamedStdio makes it."""
    host, agent = socket.socketpair()
    agent.setblocking(False)
    with host, agent:
        yield host, agent


def test_output_arrives_exactly_and_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    host, agent = pair
    reader, writer = os.pipe()
    threads = start(streams.send_output, reader, agent), start(write_all, writer, DATA)
    assert hashlib.sha256(read_all(host)).digest() == hashlib.sha256(DATA).digest()
    finish(*threads)
    assert agent.fileno() == -1


def test_input_arrives_exactly_and_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    host, agent = pair
    reader, writer = os.pipe()

    def send() -> None:
        host.sendall(DATA)
        host.shutdown(socket.SHUT_WR)

    threads = start(streams.receive_input, agent, writer), start(send)
    with open(reader, "rb") as file:
        assert file.read() == DATA
    finish(*threads)


def test_copy_without_splice() -> None:
    """Neither side a pipe, as with a terminal."""
    (host, agent), (outer, inner) = socket.socketpair(), socket.socketpair()
    with host, agent, outer, inner:
        agent.setblocking(False)
        inner.setblocking(False)
        thread = start(streams.copy, agent.fileno(), inner.fileno())

        def send() -> None:
            host.sendall(DATA)
            host.shutdown(socket.SHUT_WR)

        sender = start(send)
        received = b""
        while len(received) < len(DATA):
            received += outer.recv(1 << 20)
        assert received == DATA
        finish(thread, sender)


def test_writer_goes_on_when_the_host_leaves(pair: tuple[socket.socket, socket.socket]) -> None:
    host, agent = pair
    reader, writer = os.pipe()
    thread = start(streams.send_output, reader, agent)
    os.write(writer, b"x")
    assert host.recv(1) == b"x"
    host.close()
    write_all(writer, DATA)  # would raise BrokenPipeError, or never return, if the agent stopped reading
    finish(thread)


def test_input_stream_ends_when_the_process_closes_stdin(pair: tuple[socket.socket, socket.socket]) -> None:
    host, agent = pair
    reader, writer = os.pipe()
    thread = start(streams.receive_input, agent, writer)
    os.close(reader)
    host.sendall(b"nobody reads this")
    finish(thread)
    try:
        assert host.recv(1) == b""
    except ConnectionResetError:
        pass  # what was never read makes the end a reset


def test_idle_input_ends_with_the_process(pair: tuple[socket.socket, socket.socket]) -> None:
    host, agent = pair
    stdio = StreamedStdio(agent, None, None)
    reader, writer = os.pipe()
    stdio.attach(Ends(writer, None, None, None))
    stdio.ended()
    assert host.recv(1) == b""
    with open(reader, "rb") as file:
        assert file.read() == b""


def test_stalled_output_leaves_the_pipe_usable(pair: tuple[socket.socket, socket.socket]) -> None:
    """A copy that waits for the host must not hold the kernel's lock on the pipe."""
    host, agent = pair
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = start(streams.send_output, reader, agent)
    full = 0
    while full < 20:  # full for good, not only until the copy has moved on
        try:
            os.write(writer, bytes(4096))
            full = 0
        except BlockingIOError:
            full += 1
            threading.Event().wait(0.005)
    with pytest.raises(BlockingIOError):
        os.write(writer, b"x")  # would block in the kernel, unkillable, if splice held the lock
    os.close(writer)
    read_all(host)
    finish(thread)


def test_claim_waits_for_a_stream_that_is_on_its_way() -> None:
    table = StreamTable()
    host, agent = socket.socketpair()
    with host, agent:
        threading.Timer(0.05, table.add, (agent, 7)).start()
        assert table.claim(7, timeout=10) is agent
        with pytest.raises(NotFoundError, match="no stdio stream 7"):
            table.claim(7, timeout=0.01)


def test_a_stream_that_its_host_has_closed_is_nobodys() -> None:
    """A local user connected by a port that is the shim's a moment later, and left a line for its program."""
    table = StreamTable()
    (user, stale), (shim, stream) = socket.socketpair(), socket.socketpair()
    with user, stale, shim, stream:
        user.send(b"evil\n")
        table.add(stale, 7)
        user.close()
        threading.Timer(0.05, table.add, (stream, 7)).start()
        assert table.claim(7, timeout=10) is stream
        assert stale.fileno() == -1


def test_a_stream_whose_input_has_ended_is_claimed() -> None:
    table = StreamTable()
    shim, stream = socket.socketpair()
    with shim, stream:
        table.add(stream, 7)
        shim.send(b"all")
        shim.shutdown(socket.SHUT_WR)
        assert table.claim(7, timeout=0) is stream
        assert stream.recv(10) == b"all"


def test_table_is_bounded() -> None:
    table = StreamTable()
    pairs = [socket.socketpair() for _ in range(257)]
    try:
        for number, (_, agent) in enumerate(pairs):
            table.add(agent, number)
        assert pairs[0][1].fileno() == -1
        assert table.claim(1, timeout=0) is pairs[1][1]
    finally:
        for host, agent in pairs:
            host.close()
            agent.close()


def test_ports_claim_what_they_name() -> None:
    table = StreamTable()
    called = Ports(0, 0, 0).claim(table)
    assert isinstance(called, CalledStdio)
    called.close()
    nothing = Ports(0, NO_STREAM, 0).claim(table)
    assert nothing.wanted == (False, False, False)
    host, agent = socket.socketpair()
    with host:
        table.add(agent, 5)
        with pytest.raises(NotFoundError):
            _claim_quickly(table, Ports(5, 6, 0))
        assert host.recv(1) == b""  # the one that had arrived was closed


def _claim_quickly(table: StreamTable, ports: Ports) -> None:
    claim = table.claim
    table.claim = lambda number: claim(number, timeout=0.01)  # type: ignore[method-assign,misc,assignment]
    ports.claim(table)


def called_stdio() -> tuple[CalledStdio, Wiring, tuple[int, int, int]]:
    """Streams for calls, and copies of the process's ends."""
    stdio, wiring = CalledStdio(), Wiring(terminal=False)
    process = os.dup(wiring.child[0]), os.dup(wiring.child[1]), os.dup(wiring.child[2])
    stdio.attach(wiring.connect())
    return stdio, wiring, process


def test_calls_read_and_write() -> None:
    stdio, _, (stdin, stdout, stderr) = called_stdio()
    os.write(stdout, b"out")
    os.write(stderr, b"err")
    assert (stdio.read(1, 2), stdio.read(1, 2), stdio.read(2, 10)) == (b"ou", b"t", b"err")
    assert stdio.write(b"in") == 2
    stdio.close_stdin()
    with open(stdin, "rb") as file:
        assert file.read() == b"in"
    os.close(stdout)
    assert stdio.read(1, 10) == b""
    assert stdio.read(1, 10) == b""
    os.close(stderr)
    stdio.close()
    stdio.close()
    stdio.ended()


def test_calls_end_with_the_process_even_if_a_pipe_stays_open() -> None:
    stdio, _, process = called_stdio()
    got: list[bytes] = []
    thread = start(lambda: got.append(stdio.read(1, 10)))
    os.write(process[2], b"last output")
    stdio.ended()
    finish(thread)
    assert got == [b""]
    assert stdio.read(2, 100) == b"last output"
    for descriptor in process:
        os.close(descriptor)
    stdio.close()


def test_calls_write_more_than_a_pipe_holds_until_the_process_ends() -> None:
    stdio, _, process = called_stdio()
    failures: list[Code] = []

    def write() -> None:
        try:
            stdio.write(bytes(3 << 20))
        except RpcError as error:
            failures.append(error.code)

    thread = start(write)
    assert os.read(process[0], 1000)
    stdio.ended()
    finish(thread)
    assert failures == [Code.FAILED_PRECONDITION]
    for descriptor in process:
        os.close(descriptor)
    stdio.close()


def test_wiring_gives_null_for_what_nobody_wants_and_leaks_nothing() -> None:
    before = os.listdir("/proc/self/fd")
    wiring = Wiring(terminal=False, wanted=(False, True, False))
    assert os.path.sameopenfile(wiring.child[0], wiring.child[0])
    assert os.readlink(f"/proc/self/fd/{wiring.child[0]}") == "/dev/null"
    assert os.readlink(f"/proc/self/fd/{wiring.child[1]}").startswith("pipe:")
    ends = wiring.connect()
    assert ends.stdin is None
    assert ends.stderr is None
    assert ends.stdout is not None
    os.close(ends.stdout)
    wiring.close()
    assert os.listdir("/proc/self/fd") == before


def test_wiring_without_a_console_says_so(tmp_path: object) -> None:
    wiring = Wiring(terminal=True, directory=str(tmp_path))
    assert wiring.console is not None
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(wiring.console)
    with pytest.raises(RpcError, match="receive the terminal from the container runtime"):
        wiring.connect()
    wiring.close()
    assert not os.path.exists(wiring.console)
