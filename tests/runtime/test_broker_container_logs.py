"""What the broker appends to the files that are logs of containers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.broker import container_logs
from kata_runtime.broker.container_logs import ContainerLogs
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.event_loop import EventLoop

APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


@pytest.fixture
def loop() -> EventLoop:
    return EventLoop()


@pytest.fixture
def logs(loop: EventLoop) -> Iterator[ContainerLogs]:
    """Logs of which no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    made = ContainerLogs(loop)
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_written_is_appended_until_the_writer_ends(
    loop: EventLoop, logs: ContainerLogs, tmp_path: Path
) -> None:
    (log := tmp_path / "log").write_text("before\n")
    first, second = (logs.add(os.open(log, APPEND)) for _ in range(2))
    for end, text in ((first, b"out\n"), (second, b"err\n")):
        os.write(end, text)
        loop.run_once(0)
    assert log.read_text() == "before\nout\nerr\n"
    before = len(os.listdir("/proc/self/fd"))
    os.close(first)
    loop.run_once(0)
    assert len(os.listdir("/proc/self/fd")) == before - 3
    os.write(second, b"more\n")
    loop.run_once(0)
    os.close(second)
    assert log.read_text().endswith("err\nmore\n")


def test_who_writes_to_a_full_file_system_learns_it(loop: EventLoop, logs: ContainerLogs) -> None:
    end = logs.add(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC))
    os.write(end, b"out\n")
    loop.run_once(0)
    with pytest.raises(BrokenPipeError):
        os.write(end, b"more\n")
    os.close(end)


def test_at_the_end_what_was_written_is_appended_and_no_more(
    logs: ContainerLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shim that is owned may go on writing for ever."""
    monkeypatch.setattr(container_logs, "LARGEST_PIPE", 2 * container_logs.PIECE)
    end = logs.add(os.open(tmp_path / "log", APPEND))
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 4 * container_logs.PIECE)
    assert os.write(end, bytes(4 * container_logs.PIECE)) == 4 * container_logs.PIECE
    logs.close()
    assert (tmp_path / "log").stat().st_size == 2 * container_logs.PIECE
    with pytest.raises(BrokenPipeError):
        os.write(end, b"x")
    os.close(end)


def test_a_sandbox_has_so_many_logs_open_and_no_more(
    logs: ContainerLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_logs, "MOST_OPEN", 2)
    ends = [logs.add(os.open(tmp_path / "log", APPEND)) for _ in range(2)]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RequestRefusedError, match="the sandbox has 2 of them open"):
        logs.add(os.open(tmp_path / "log", APPEND))
    assert len(os.listdir("/proc/self/fd")) == before
    for end in ends:
        os.close(end)
