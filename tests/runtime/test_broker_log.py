"""The broker's log: what it says goes first and is kept, what the shim says is passed on in whole lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.broker import log_relay, log_sink
from kata_runtime.broker.event_loop import EventLoop
from kata_runtime.broker.log_relay import LogRelay
from kata_runtime.broker.log_sink import LogSink

FULL = b"x" * 4096


class Bed:
    """A bundle's log, which is read here, and the shim's end of the relay."""

    def __init__(self, bundle: Path) -> None:
        os.mkfifo(bundle / "log")
        self.fifo = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        self.loop = EventLoop()
        self.sink = LogSink(str(bundle), "pod", self.loop)
        self.relay = LogRelay(self.sink, self.loop)
        self.shim = self.relay.open()

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.run_once(0)
            self.relay.resume()

    def read(self) -> bytes:
        found = b""
        try:
            while piece := os.read(self.fifo, 1 << 16):
                found += piece
        except BlockingIOError:
            return found
        return found

    def fill(self) -> int:
        """Fill the FIFO; returns how much is in it."""
        size = 0
        try:
            while True:
                size += os.write(self.fifo, FULL)
        except BlockingIOError:
            return size


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    yield made
    os.close(made.fifo)


def test_whole_lines_are_passed_on(bed: Bed) -> None:
    os.write(bed.shim, b"one\ntwo")
    bed.turn()
    assert bed.read() == b"one\n"
    bed.sink.write("error", "three")
    os.write(bed.shim, b" and a half\n")
    bed.turn()
    first, second = bed.read().decode().splitlines()
    assert 'level=error msg="three" runtime=kata sandbox=pod' in first
    assert second == "two and a half"


def test_what_a_terminal_obeys_is_shown(bed: Bed) -> None:
    os.write(bed.shim, b"\x1b[2J\r\xff\n")
    bed.turn()
    assert bed.read().decode() == "\\x1b[2J\\x0d\ufffd\n"


def test_a_line_without_an_end_becomes_several(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_relay, "MAX_LINE", 8192)
    for _ in range(3):
        os.write(bed.shim, FULL)
        bed.turn()
    assert bed.read() == FULL * 2 + b"\n"
    os.close(bed.shim)
    bed.turn()
    assert bed.read() == FULL + b"\n"
    assert not bed.relay.is_open


def test_without_a_reader_the_broker_s_lines_are_kept_and_go_first(bed: Bed) -> None:
    size = bed.fill()
    os.write(bed.shim, b"of the shim\n")
    bed.turn()
    bed.sink.write("error", "of the broker")
    bed.turn(3)
    assert len(bed.read()) == size + len("of the shim\n") * 0
    bed.turn(3)
    lines = bed.read().decode().splitlines()
    assert len(lines) == 2
    assert "of the broker" in lines[1] or "of the broker" in lines[0]
    assert "of the shim" in lines


def test_nothing_of_the_shim_is_taken_while_there_is_no_room(bed: Bed) -> None:
    bed.fill()
    bed.sink.write("error", "first")
    bed.relay.resume()
    os.write(bed.shim, b"of the shim\n" * 100)
    bed.turn(3)
    bed.sink.write("error", "second")
    bed.read()
    bed.turn(5)
    lines = bed.read().decode().splitlines()
    assert ["first" in lines[0], "second" in lines[1]] == [True, True]
    assert lines[2:] == ["of the shim"] * 100


def test_what_is_lost_is_counted(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_sink, "MAX_KEPT", 300)
    bed.fill()
    for number in range(5):
        bed.sink.write("error", f"line {number}")
    bed.read()
    bed.turn()
    *kept, last = bed.read().decode().splitlines()
    assert [f"line {number}" in line for number, line in enumerate(kept)] == [True] * len(kept)
    assert f"{5 - len(kept)} lines of the broker were not logged: nobody read them" in last


def test_a_shim_that_says_too_much_has_to_wait(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_relay, "RATE", 4096)
    bed.relay._allowed = 2 * 4096.0
    for _ in range(8):
        os.write(bed.shim, b"y" * 1023 + b"\n")
    os.write(bed.shim, b"y" * 1023 + b"\n")
    bed.turn(5)
    assert len(bed.read()) == 8192
    assert 0 < (bed.relay.remaining() or 0) <= 1000
    bed.relay._counted -= 2.0  # as if so many seconds had passed
    bed.turn(2)
    assert len(bed.read()) == 1024


def test_the_shim_s_last_words_are_passed_on(bed: Bed) -> None:
    os.write(bed.shim, b"last\nwords")
    os.close(bed.shim)
    bed.relay.follow(60)
    assert bed.read() == b"last\nwords\n"
    assert not bed.relay.is_open
    bed.relay.follow(60)


def test_nobody_waits_for_a_shim_that_does_not_end(bed: Bed) -> None:
    os.write(bed.shim, b"I stay")
    bed.relay.follow(0.01)
    assert bed.read() == b"I stay\n"


def test_without_a_log_all_is_lost_and_nothing_waits(tmp_path: Path) -> None:
    loop = EventLoop()
    sink = LogSink(str(tmp_path), "pod", loop)
    relay = LogRelay(sink, loop)
    shim = relay.open()
    os.write(shim, b"word\n")
    loop.run_once(0)
    sink.write("error", "x")
    assert sink.idle
    os.close(shim)
