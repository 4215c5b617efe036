"""Lines to a FIFO that has little room, or none: each is whole, or counted."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_runtime.logging import LineWriter
from kata_runtime.stdio.files import write_line

ROOM = 8192


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, ROOM)
    yield read, write
    os.close(read)
    os.close(write)


def emptied(read: int) -> bytes:
    data = b""
    while True:
        try:
            data += os.read(read, 1 << 16)
        except BlockingIOError:
            return data


def test_a_line_longer_than_its_room_is_counted_and_the_next_one_is_whole(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    lines.write(b"a" * (2 * ROOM) + b"\n")
    assert emptied(read) == b"a" * ROOM
    lines.write(b"next\n")
    assert emptied(read) == b'\nlevel=warning msg="1 log lines dropped: nobody read them"\nnext\n'
    lines.write(b"last\n")
    assert emptied(read) == b"last\n"


@settings(max_examples=60)
@given(st.lists(st.one_of(st.integers(1, 3 * ROOM), st.none()), min_size=1, max_size=30))
def test_every_line_is_either_there_whole_or_counted(steps: list[int | None]) -> None:
    """An integer writes a line of so many bytes; None reads what is there."""
    read, write = os.pipe2(os.O_NONBLOCK)
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, ROOM)
        lines, sent, seen = LineWriter(write), [], b""
        for number, step in enumerate(steps):
            if step is None:
                seen += emptied(read)
            else:
                sent.append(f"line{number}:".encode() + b"x" * step)
                lines.write(sent[-1] + b"\n")
        seen += emptied(read)
        lines.write(b"the end\n")
        seen += emptied(read)
    finally:
        os.close(read)
        os.close(write)
    found = seen.split(b"\n")
    whole = [line for line in sent if line in found]
    counted = sum(int(line.split(b'"')[1].split()[0]) for line in found if line.startswith(b"level=warning"))
    assert len(whole) + counted == len(sent)
    assert found[-2:] == [b"the end", b""]


def test_a_notice_is_cut_where_a_pipe_may_take_only_a_part_of_it(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.write(write, b"x" * 5000)
    write_line(write, "y" * 100_000 + "\n")
    assert emptied(read) == b"x" * 5000  # nothing of it: there is no room for a whole one
    write_line(write, "y" * 100_000 + "\n")
    assert emptied(read) == b"y" * (select.PIPE_BUF - 1) + b"\n"
