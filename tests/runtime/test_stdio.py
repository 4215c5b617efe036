"""Streams between FIFOs and the guest: whole, ended at the right moment, and never waiting for ever."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from kata_agent.constants import NO_STREAM
from kata_runtime.errors import UnsupportedError
from kata_runtime.stdio import pumps as stdio_module
from kata_runtime.stdio.files import StdioFiles, StdioPaths
from kata_runtime.stdio.pumps import Stdio, connect

DATA = os.urandom(3 << 20)


async def open_fifo(path: str, mode: str) -> int:
    flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[mode]
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


class Logs:
    """The broker's part of a log: it takes what is in the pipe, and appends it when it is asked to settle."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, Path, bytes]] = []

    async def open(self, path: str) -> int:
        pipe, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        number = len(self._ends)
        self._ends.append((pipe, Path(path), b""))
        asyncio.get_running_loop().add_reader(pipe, self._take, number)
        return theirs

    def _take(self, number: int) -> None:
        pipe, path, taken = self._ends[number]
        piece = os.read(pipe, 1 << 16)
        self._ends[number] = (pipe, path, taken + piece)
        if not piece:
            asyncio.get_running_loop().remove_reader(pipe)
            os.close(pipe)

    async def settle(self) -> None:
        for number, (pipe, path, taken) in enumerate(self._ends):
            with path.open("ab") as file:
                file.write(taken)
            self._ends[number] = (pipe, path, b"")


async def open_log(path: str) -> int:
    raise AssertionError(f"a log was asked for: {path}")


async def no_logger(uri: str) -> tuple[int, int]:
    raise AssertionError(f"a logger was asked for: {uri}")


class Guest:
    """The guest's ends of the streams, by name, in the order in which they are opened."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self.ends: dict[str, socket.socket] = {}

    async def connect(self) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        name = self._names[len(self.ends)]
        self.ends[name] = theirs
        return ours, len(self.ends)


@pytest.fixture
async def tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


@pytest.fixture
def paths(tmp_path: Path) -> Callable[[str], str]:
    def make(name: str) -> str:
        os.mkfifo(tmp_path / name)
        return str(tmp_path / name)

    return make


def read_all(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write_all(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


async def connected(given: StdioPaths, names: list[str]) -> tuple[Stdio, Guest]:
    guest = Guest(names)
    logs = Logs()
    files = await StdioFiles.open(given, open_fifo, logs.open, no_logger)
    files.settle = logs.settle
    streams, ports = await connect(files, guest.connect)
    stdio = Stdio(files, streams)
    assert sorted(ports) == ["stderr", "stdin", "stdout"]
    assert sorted(name for name, number in ports.items() if number != NO_STREAM) == sorted(names)
    return stdio, guest


async def test_output_arrives_whole_and_apart(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str]
) -> None:
    out, err = paths("out"), paths("err")
    stdio, guest = await connected(StdioPaths(stdout=out, stderr=err), ["stdout", "stderr"])
    stdio.start(tasks)
    received: dict[str, bytes] = {}

    async def read(name: str, path: str) -> None:
        received[name] = await anyio.to_thread.run_sync(read_all, path)

    def produce() -> None:
        guest.ends["stdout"].sendall(DATA)
        guest.ends["stderr"].sendall(b"oops")
        for end in guest.ends.values():
            end.close()

    async with anyio.create_task_group() as readers:
        readers.start_soon(read, "out", out)
        readers.start_soon(read, "err", err)
        await anyio.to_thread.run_sync(produce)
        await stdio.finish()
    assert hashlib.sha256(received["out"]).digest() == hashlib.sha256(DATA).digest()
    assert received["err"] == b"oops"


async def test_input_arrives_whole_and_ends_with_the_writer(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str]
) -> None:
    path = paths("in")
    stdio, guest = await connected(StdioPaths(stdin=path), ["stdin"])
    stdio.start(tasks)

    def consume() -> bytes:
        with guest.ends["stdin"].makefile("rb") as file:
            return file.read()

    async with anyio.create_task_group() as writer:
        writer.start_soon(anyio.to_thread.run_sync, write_all, path, DATA)
        got = await anyio.to_thread.run_sync(consume)
    assert got == DATA
    guest.ends["stdin"].close()
    stdio.close()


async def test_close_stdin_gives_what_is_left_first(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str]
) -> None:
    path = paths("in")
    stdio, guest = await connected(StdioPaths(stdin=path), ["stdin"])
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"the rest")
    stdio.start(tasks)
    stdio.close_stdin()

    def consume() -> bytes:
        with guest.ends["stdin"].makefile("rb") as file:
            return file.read()

    assert await anyio.to_thread.run_sync(consume) == b"the rest"
    os.close(writer)
    guest.ends["stdin"].close()
    stdio.close()


async def test_a_log_file_takes_output_too(tasks: anyio.abc.TaskGroup, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    stdio, guest = await connected(StdioPaths(stdout=f"file://{log}"), ["stdout"])
    stdio.start(tasks)
    await anyio.to_thread.run_sync(guest.ends["stdout"].sendall, DATA)
    guest.ends["stdout"].close()
    await stdio.deliver()
    assert log.read_bytes() == b"before\n" + DATA
    await stdio.finish()


async def test_the_path_of_a_log_is_that_of_a_uri(tmp_path: Path) -> None:
    log = tmp_path / "a log"
    uri, asked = f"file://{tmp_path}/a%20log?ignored=1", []

    async def open_log(path: str) -> int:
        asked.append(path)
        return await Logs().open(path)

    files = await StdioFiles.open(StdioPaths(stdout=uri, stderr=uri), open_fifo, open_log, no_logger)
    assert asked == [str(log), str(log)]
    assert files.logs == {files.stdout, files.stderr}
    files.close()


@pytest.mark.parametrize(
    ("stdout", "stderr"),
    [
        ("binary:///bin/logger", "file:///log"),
        ("binary:///bin/logger", "binary:///bin/other"),
        ("", "binary:///bin/logger"),
        ("fd://3", ""),
    ],
)
async def test_what_takes_no_output_is_refused_and_nothing_stays_open(
    paths: Callable[[str], str], stdout: str, stderr: str
) -> None:
    path = paths("in")
    given = StdioPaths(stdin=path, stdout=stdout, stderr=stderr)
    with pytest.raises(UnsupportedError, match="use a FIFO, file:///path, or for both streams one binary"):
        await StdioFiles.open(given, open_fifo, open_log, no_logger)
    with pytest.raises(OSError, match="No such device"):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("named_twice", [False, True])
async def test_a_logger_gets_both_outputs(scheme: str, terminal: bool, named_twice: bool) -> None:
    uri, asked = f"{scheme}:///bin/logger?a=b", []
    ends = [os.pipe(), os.pipe()]

    async def start_logger(uri: str) -> tuple[int, int]:
        asked.append(uri)
        return ends[0][1], ends[1][1]

    given = StdioPaths(stdout=uri, stderr=uri if named_twice else "", terminal=terminal)
    files = await StdioFiles.open(given, open_fifo, open_log, start_logger)
    assert asked == [uri]
    assert files.names == (["stdout"] if terminal else ["stdout", "stderr"])
    os.write(files.stdout, b"x")
    assert files.unread(files.stdout) == 1
    files.close()
    for read, data in zip((ends[0][0], ends[1][0]), (b"x", b""), strict=True):
        assert os.read(read, 10) == data
        os.close(read)


async def test_a_reader_that_never_comes_does_not_hold_the_end_up(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio_module, "STALL_BUDGET", 0.05)
    stdio, guest = await connected(StdioPaths(stdout=paths("out")), ["stdout"])
    stdio.start(tasks)
    guest.ends["stdout"].setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 64 << 20:
            sent += guest.ends["stdout"].send(b"x" * 65536)
            await anyio.lowlevel.checkpoint()
    assert sent < 64 << 20
    await stdio.finish()
    assert stdio.drained.is_set()
    guest.ends["stdout"].close()


async def test_the_end_is_held_back_until_the_client_has_read_everything(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str]
) -> None:
    path = paths("out")
    stdio, guest = await connected(StdioPaths(stdout=path), ["stdout"])
    stdio.start(tasks)
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    taken, known = 0, anyio.Event()

    def produce() -> None:
        guest.ends["stdout"].sendall(b"x" * (256 << 10))
        guest.ends["stdout"].close()

    # In a thread: more than the socket and the FIFO hold, so it waits for the client.
    tasks.start_soon(anyio.to_thread.run_sync, produce)

    async def deliver() -> None:
        await stdio.deliver()
        known.set()

    tasks.start_soon(deliver)
    while taken < 256 << 10:
        assert not known.is_set()
        with contextlib.suppress(BlockingIOError):
            taken += len(os.read(client, 4096))
        await anyio.lowlevel.checkpoint()
    await known.wait()
    os.close(client)
    stdio.close()


async def test_the_end_is_not_held_back_for_a_client_that_does_not_read(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio_module, "DELIVERY_BUDGET", 0.05)
    stdio, guest = await connected(StdioPaths(stdout=paths("out")), ["stdout"])
    stdio.start(tasks)
    guest.ends["stdout"].sendall(b"unread")
    await stdio.deliver()
    guest.ends["stdout"].close()
    stdio.close()


async def test_a_reader_that_comes_after_the_end_finds_the_output(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str]
) -> None:
    path = paths("out")
    stdio, guest = await connected(StdioPaths(stdout=path), ["stdout"])
    stdio.start(tasks)
    guest.ends["stdout"].sendall(b"late")
    guest.ends["stdout"].close()
    await stdio.finish()
    assert await anyio.to_thread.run_sync(read_all, path) == b"late"
    stdio.close()


async def test_a_notice_is_the_last_line(paths: Callable[[str], str]) -> None:
    path = paths("out")
    stdio, guest = await connected(StdioPaths(stdout=path), ["stdout"])
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stdio.notice("kata: ended\n")
    stdio.close()
    assert os.read(reader, 100) == b"kata: ended\n"
    os.close(reader)
    guest.ends["stdout"].close()


async def test_the_guests_death_is_told_behind_the_output(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str]
) -> None:
    """The streams end first, and the reason is known a moment later."""
    path = paths("err")
    stdio, guest = await connected(StdioPaths(stderr=path), ["stderr"])
    stdio.start(tasks)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    guest.ends["stderr"].sendall(b"last output\n")
    guest.ends["stderr"].close()
    await stdio.drained.wait()
    stdio.notice("kata: ended\n")
    await stdio.finish()
    assert os.read(reader, 100) == b"last output\nkata: ended\n"
    os.close(reader)


async def test_a_closed_process_leaves_its_descriptors_numbers_to_the_next(
    tasks: anyio.abc.TaskGroup, paths: Callable[[str], str]
) -> None:
    """It ended while its input was waited for; the next process gets the same numbers in the same moment."""
    given = StdioPaths(stdin=paths("in"))
    writer = os.open(given.stdin, os.O_RDWR | os.O_NONBLOCK)
    for _ in range(3):
        stdio, guest = await connected(given, ["stdin"])
        stdio.start(tasks)
        await anyio.wait_all_tasks_blocked()
        os.write(writer, b"x")
        guest.ends["stdin"].setblocking(False)
        await anyio.wait_readable(guest.ends["stdin"])
        assert guest.ends["stdin"].recv(10) == b"x"
        stdio.close()
        guest.ends["stdin"].close()
    os.close(writer)
