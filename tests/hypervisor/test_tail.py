"""The output tail of hostile writers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.output_tail import LINE_LIMIT, Tail, follow


@given(st.lists(st.binary(max_size=300)), st.integers(1, 64))
def test_a_tail_is_the_end_of_what_was_fed(pieces: list[bytes], limit: int) -> None:
    tail, whole = Tail(limit), Tail(10**6)
    for piece in pieces:
        tail.feed(piece)
    whole.feed(b"".join(pieces)[-limit:])
    assert tail.text == whole.text
    assert all(char.isprintable() or char in "\t\n" for char in tail.text)


def test_the_last_line_is_short_and_readable() -> None:
    tail = Tail()
    assert tail.last_line == ""
    tail.feed(b"first\nsecond \x1b[31m\xff\r\n\n  \n")
    assert tail.last_line == "second \ufffd[31m\ufffd"
    tail.feed(b"x" * 5000)
    assert tail.last_line == "x" * LINE_LIMIT


async def test_a_pipe_is_followed_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    log = logging.getLogger("test of a pipe")
    caplog.set_level(logging.DEBUG, log.name)
    follower = await follow(os.fdopen(reader, "rb", buffering=0), log)
    os.write(writer, b"one\ntw")
    os.write(writer, b"o\nrest")
    os.close(writer)
    await follower.ended.wait()
    assert (follower.tail.text, caplog.messages) == ("one\ntwo\nrest", ["one", "two"])
    await follower.aclose()
    await follower.aclose()


async def test_a_socket_is_followed_to_its_end() -> None:
    ours, theirs = socket.socketpair()
    follower = await follow(ours)
    theirs.send(b"word\n")
    theirs.close()
    await follower.ended.wait()
    assert follower.tail.last_line == "word"
    await follower.aclose()
    assert ours.fileno() == -1


async def test_closing_early_closes_the_stream() -> None:
    ours, theirs = socket.socketpair()
    follower = await follow(ours)
    await follower.aclose()
    with theirs:
        assert await asyncio.to_thread(theirs.recv, 1) == b""
