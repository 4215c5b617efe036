"""A shim that a guest owns, and that drowns the log: what the broker says of it arrives whole."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from attack_bed import IS_ROOT, Owned, World, end, make_world
from broker_bed import Shim
from kata_runtime.broker import context, log_relay, messages

REFUSALS = 3 * context.MAX_REFUSALS // 2
PIPE = 64 << 10
FORGED = b'time="2026-01-01T00:00:00.000Z" level=info msg="all is well" runtime=kata sandbox=sandbox\n'
JUNK = (b"\x1b[2J\rno end of a line " * 400, FORGED * 40, b"\n" * 4096, b"\xff\x00" * 2048)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with make_world(monkeypatch) as made:
        yield made


def log_of(attacker: Owned) -> int:
    """What a shim gets to write its log to."""
    messages.send(attacker.channel, messages.encode({"id": 1, "op": "relay_log"}))
    _, (pipe,) = messages.receive(attacker.channel)
    return pipe


def drown(pipe: int, turn: int) -> None:
    """Write until no more is taken."""
    with contextlib.suppress(BlockingIOError):
        while os.write(pipe, JUNK[turn % len(JUNK)]):
            pass


def act(attacker: Owned, world: World, pipe: int) -> object:
    """Ask for what is refused, with a full log each time."""
    for turn in range(REFUSALS):
        drown(pipe, turn)
        target = f"{world.bed.shared}/{turn}"
        attacker.ask("bind", source="/", target=target, readonly=False, recursive=True)
    return len(attacker.ask("relay_log")["gained"])


def play(world: World, *, reader_first: bool) -> tuple[str, object]:
    """Everything that arrived in the log of an attacked pod; and what the attacker says."""
    log = os.open(world.bed.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    found = world.bed.root / "found"

    def read() -> subprocess.Popen[bytes]:
        with found.open("wb") as file:
            return subprocess.Popen(
                ["dd", f"if={world.bed.bundle}/log", "bs=512", "status=none"], stdout=file
            )

    def whole(channel: object) -> object:
        os.close(log)
        attacker = Owned(channel)  # type: ignore[arg-type]
        attacker.learn(world)
        pipe = log_of(attacker)
        attacker.seal()
        world.write_as_guest()
        return act(attacker, world, pipe)

    reader = read() if reader_first else None
    shim = Shim(world.bed, whole, namespace=IS_ROOT)
    world.shims.append(shim)
    reader = reader or read()
    os.close(log)
    end(shim)
    reader.wait()
    return found.read_text(errors="replace"), shim.result


@pytest.mark.parametrize("reader_first", [True, False], ids=["containerd reads", "containerd is away"])
def test_what_the_broker_says_arrives_whole(
    world: World, monkeypatch: pytest.MonkeyPatch, reader_first: bool
) -> None:
    monkeypatch.setattr(log_relay, "BURST", PIPE)
    monkeypatch.setattr(log_relay, "RATE", 1)
    text, gained = play(world, reader_first=reader_first)
    lines = text.split("\n")
    said = "refused what the sealed shim asked for: bind: "
    line = rf'time="[^"]*" level=warning msg="{said}[^"]*" runtime=kata sandbox=\S+'
    named = [one for one in lines if re.fullmatch(line, one)]
    assert len(named) == context.MAX_REFUSALS
    last = f"asked for: {REFUSALS + 1 - context.MAX_REFUSALS} more times, not logged one by one"
    assert sum(last in one for one in lines) == 1
    assert not re.search(r"[^\n\t\x20-\x7e\ufffd]", text), "a terminal obeys something of it"
    assert gained == 0
    # It has its rate, and what was in the pipe at the end.
    theirs = sum(len(one) + 1 for one in lines if one not in named)
    assert theirs < 8 * (PIPE + PIPE), "the shim fills the log"
