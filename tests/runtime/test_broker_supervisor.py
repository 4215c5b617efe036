"""The broker's watch over a shim that is under a filter: what it answers, names, keeps and kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.syscalls import numbers
from kata_runtime.broker import connections, messages, supervisor
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.log_sink import take_fatal_message

POLICY = "test [base]"


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as bed:
        os.mkfifo(bed.bundle / "log")
        yield bed


def everything_but(*names: str) -> bytes:
    """A filter that asks the supervisor about these calls only."""
    allowed = [name for name in numbers("x86_64") if name not in names]
    return compile_rules((Rule(tuple(allowed)),), actions.NOTIFY).code


CODE = everything_but("mkdir", "mkdirat", "getpgid")


def seal(channel: socket.socket, mode: str = "enforce") -> dict[str, Any]:
    """Announce, install, hand over; returns the broker's answer."""
    assert "result" in ask(channel, "announce_seal", mode=mode, policy=POLICY)
    listener = kernel.install(CODE, all_threads=True, listener=True)
    assert listener is not None
    messages.send(channel, messages.encode({"id": 2, "op": "supervise"}), [listener])
    os.close(listener)
    return messages.receive(channel)[0]


def provoke() -> int:
    """A call that the filter does not allow; its errno, 0 when it was made."""
    try:
        os.getpgid(0)
    except OSError as error:
        return error.errno or -1
    return 0


def violate(channel: socket.socket) -> dict[str, Any]:
    proof = seal(channel)["result"]["threads"]
    first, second = provoke(), provoke()
    told, _ = messages.receive(channel)
    refused = [ask(channel, op, **how)["error"]["message"] for op, how in LATE.items()]
    return {"proof": proof, "errnos": [first, second], "told": told, "refused": refused}


LATE: dict[str, dict[str, Any]] = {
    "prepare": {"cgroup": None},
    "announce_seal": {"mode": "log", "policy": "weaker"},
    "register_guest": {"address": 77},
}


def run(bed: Bed, act: Callable[[socket.socket], object]) -> tuple[Shim, list[str]]:
    """A shim that acts, and what the broker has logged by then."""
    log = os.open(bed.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    shim = Shim(bed, act, namespace=False)
    try:
        lines = os.read(log, 1 << 16).decode().splitlines()
    except BlockingIOError:
        lines = []
    os.close(log)
    return shim, lines


def test_a_refused_call_is_named_told_and_ends_the_shim(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.3)
    shim, log = run(bed, violate)
    (thread,) = shim.result["proof"]
    assert thread[0] == shim.pid
    assert thread[2] == 2
    assert shim.result["errnos"] == [1, 1]  # EPERM, and again
    sentence = shim.result["told"]["violation"]
    called = f"seccomp: the runtime's process called getpgid (121) on thread {thread[1]} (tid {shim.pid})"
    assert sentence.startswith(called)
    assert f"which policy {POLICY} does not allow: the call was refused and the pod ended" in sentence
    assert all("the sandbox is sealed" in message for message in shim.result["refused"])
    assert [line for line in log if "getpgid" in line and "level=error" in line] == log
    assert len(log) == 1
    # It does not end by itself; the broker ends it, undoes everything, and leaves its last words.
    assert os.waitstatus_to_exitcode(os.waitpid(shim.pid, 0)[1]) == -signal.SIGKILL
    wait_for_end(shim.broker)
    assert take_fatal_message(str(bed.bundle)) == sentence
    assert take_fatal_message(str(bed.bundle)) == ""
    assert not bed.directory.exists()


def test_in_log_mode_calls_are_made_and_counted(bed: Bed) -> None:
    def act(channel: socket.socket) -> object:
        seal(channel, "log")
        errnos = [provoke() for _ in range(3)]
        # Refused or not, it is made: the answer comes after the record was written.
        return [errnos, json.loads((bed.directory / supervisor.RECORD).read_text())]

    shim, log = run(bed, act)
    errnos, record = shim.result
    assert errnos == [0, 0, 0]
    assert record["mode"] == "log"
    assert record["policy"] == POLICY
    assert record["calls"]["getpgid"] >= 2
    assert len(log) == 1
    assert "level=warning" in log[0]
    assert "it was let through" in log[0]
    shim.kill()
    wait_for_end(shim.broker)
    assert take_fatal_message(str(bed.bundle)) == ""


def test_a_shim_that_does_not_hand_over_its_listener_is_killed(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "HANDOVER", 0.3)

    def act(channel: socket.socket) -> object:
        return ask(channel, "announce_seal", mode="enforce", policy=POLICY)

    shim, _ = run(bed, act)
    assert os.waitstatus_to_exitcode(os.waitpid(shim.pid, 0)[1]) == -signal.SIGKILL
    wait_for_end(shim.broker)
    assert "before it could hand over the filter's listener" in take_fatal_message(str(bed.bundle))


def test_a_listener_is_not_taken_twice_or_unannounced(bed: Bed) -> None:
    def supervise(channel: socket.socket) -> str:
        with open(os.devnull, "rb") as null:
            messages.send(channel, messages.encode({"id": 3, "op": "supervise"}), [null.fileno()])
        return str(messages.receive(channel)[0]["error"]["message"])

    def act(channel: socket.socket) -> object:
        early = supervise(channel)
        seal(channel)
        return [early, supervise(channel)]

    shim, _ = run(bed, act)
    assert shim.result == ["supervise: no seal was announced, or it is supervised already"] * 2
    shim.kill()
    wait_for_end(shim.broker)


def test_without_a_broker_a_refused_call_is_refused_still(bed: Bed) -> None:
    def act(channel: socket.socket) -> object:
        seal(channel)
        channel.close()
        while True:
            number = provoke()
            if number != 1:  # EPERM while the broker still answers
                return number
            time.sleep(0.01)

    shim, _ = run(bed, act)
    assert shim.result == 38  # ENOSYS, by the kernel
    shim.kill()
    wait_for_end(shim.broker)


def test_connections_lead_to_two_places_only(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    where = connections.Connections(path)
    with pytest.raises(RequestFailedError, match="the guest has no address yet"):
        where.connect_guest(1024)
    with pytest.raises(RequestFailedError, match=r"cannot connect to .*/s: No such file"):
        where.connect_events()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        where.register_guest(path)
        for connect in (where.connect_events, lambda: where.connect_guest(5)):
            with socket.socket(fileno=connect()) as ours, listener.accept()[0] as theirs:
                assert not os.get_blocking(ours.fileno())
                theirs.send(b"x")
                assert ours.recv(1) == b"x"
    where = connections.Connections("x" * 200)
    with pytest.raises(RequestFailedError, match="too long"):
        where.connect_events()
