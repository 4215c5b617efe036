"""The logger of a first container: what it gets, when it is ready, how it ends, and that there is one."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from kata_runtime.broker import cleanup, logger, messages, processes
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.logger import command


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


def script(bed: Bed, text: str) -> str:
    """The URI of a logger that runs a script."""
    path = bed.root / "logger"
    path.write_text(f"#!/bin/sh\ncd {bed.root}\n{text}\n")
    path.chmod(0o755)
    return f"binary://{path}"


def start(channel: socket.socket, uri: str) -> list[int]:
    """Start a logger: the pipes for its readiness and the two outputs, which block."""
    messages.send(channel, messages.encode({"id": 1, "op": "start_logger", "uri": uri}))
    message, received = messages.receive(channel)
    assert "result" in message, message
    for end in received:
        os.set_blocking(end, True)
    return list(received)


def with_shim(bed: Bed, act: Callable[[socket.socket], object]) -> Any:
    """What a shim answers that does something, and then closes its broker."""

    def closing(channel: socket.socket) -> object:
        found = act(channel)
        return [found, ask(channel, "close")["result"]["left"]]

    shim = Shim(bed, closing, namespace=False)
    wait_for_end(shim.broker)
    shim.kill()
    assert shim.result[1] == []
    return shim.result[0]


# -- named -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "argv"),
    [
        ("binary:///bin/log", ["/bin/log"]),
        ("binary-v2:///bin/log?a=1&b=2&a=3", ["/bin/log", "a", "1", "b", "2"]),
        ("binary:///bin/a%20b?key=x%26y+z&empty", ["/bin/a b", "key", "x&y z", "empty", ""]),
        (
            "binary:///nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar",
            ["/nerdctl", "_NERDCTL_INTERNAL_LOGGING", "/var"],
        ),
        ("binary:///a?b=%ff", ["/a", "b", "\udcff"]),
    ],
)
def test_what_a_uri_stands_for(uri: str, argv: list[str]) -> None:
    assert command(uri) == argv


@pytest.mark.parametrize(
    "uri", ["binary://bin/log", "binary://", "file:///bin/log", "/bin/log", "binary:///a%00", "binary://[/a"]
)
def test_what_is_no_logger_is_refused(uri: str) -> None:
    with pytest.raises(RequestFailedError, match="cannot log to"):
        command(uri)


# -- run ---------------------------------------------------------------------------------------------------


def test_a_logger_gets_what_containerds_shim_gives(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    uri = script(
        bed,
        'printf "%s\\n" "$@" >argv; env >env; ls /proc/self/fd >fds; cat <&3 >out; cat <&4 >err; '
        "cat <&0 >in; echo x >&5; echo done >done",
    )

    def act(channel: socket.socket) -> object:
        ready, stdout, stderr = start(channel, uri + "?key=value&other")
        os.write(stdout, b"to standard output\n")
        os.write(stderr, b"to standard error\n")
        messages.close_all([stdout, stderr])
        return os.read(ready, 10).decode()

    assert with_shim(bed, act) == "x\n"

    def read(name: str) -> str:
        return (bed.root / name).read_text()

    assert read("argv").splitlines() == ["key", "value", "other", ""]
    environment = dict(line.split("=", 1) for line in read("env").splitlines())
    assert environment.pop("PWD", "") == str(bed.root)
    environment.pop("OLDPWD", None)
    environment.pop("_", None)
    assert environment == {"CONTAINER_ID": "sandbox", "CONTAINER_NAMESPACE": "test"}
    assert set(read("fds").split()) <= {"0", "1", "2", "3", "4", "5", "6", "7", "255", "10"}
    assert (read("out"), read("err"), read("in")) == ("to standard output\n", "to standard error\n", "")
    assert read("done") == "done\n"


def test_all_that_was_written_is_drained_before_the_end(bed: Bed) -> None:
    """A logger that dies of SIGTERM, and takes its time, loses nothing."""
    uri = script(bed, "exec 5>&-; sleep 1; cat <&3 >out")

    def act(channel: socket.socket) -> object:
        ready, stdout, stderr = start(channel, uri)
        assert os.read(ready, 1) == b""
        written = os.write(stdout, b"x" * 60000)
        messages.close_all([stdout, stderr])
        return written

    assert with_shim(bed, act) == 60000
    assert (bed.root / "out").stat().st_size == 60000


@pytest.mark.parametrize(
    ("trap", "asked"), [("trap 'echo >asked; exit' TERM", True), ("trap '' TERM", False)]
)
def test_one_that_does_not_end_is_asked_and_then_killed(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, trap: str, asked: bool
) -> None:
    monkeypatch.setattr(processes, "wait", lambda *_: None)  # it does not exit by itself
    monkeypatch.setattr(logger, "PATIENCE", 60 if asked else 0.2)
    uri = script(bed, f"{trap}; echo $$ >pid; exec 5>&-; while :; do sleep 0.05; done")

    def act(channel: socket.socket) -> object:
        ready, stdout, stderr = start(channel, uri)
        os.read(ready, 1)
        messages.close_all([stdout, stderr])
        return ask(channel, "spawn")["error"]["kind"]

    assert with_shim(bed, act) == "refused"
    assert not Path("/proc", (bed.root / "pid").read_text().strip()).exists()
    assert (bed.root / "asked").exists() is asked


def test_a_cleanup_lets_the_logger_of_a_killed_broker_finish(bed: Bed) -> None:
    uri = script(bed, "exec 5>&-; cat <&3 >out; sleep 0.5; echo whole >>out")

    def act(channel: socket.socket) -> object:
        ready, stdout, _ = start(channel, uri)
        os.read(ready, 1)
        return os.write(stdout, b"the last line\n")

    shim = Shim(bed, act, namespace=False)
    os.kill(shim.broker, signal.SIGKILL)
    shim.kill()
    assert cleanup.clean_up(bed.identity) == []
    assert (bed.root / "out").read_text() == "the last line\nwhole\n"


@pytest.mark.parametrize("uri", ["binary:///no/such/logger", "binary:///etc", "binary:///etc/passwd", "x"])
def test_one_that_does_not_run_leaves_nothing(bed: Bed, uri: str) -> None:
    def act(channel: socket.socket) -> object:
        before = len(os.listdir("/proc/self/fd"))
        answer = ask(channel, "start_logger", uri=uri)
        again = ask(channel, "start_logger", uri=uri)
        return [answer["error"]["kind"], answer == again, len(os.listdir("/proc/self/fd")) - before]

    assert with_shim(bed, act) == ["failed", True, 0]


def test_a_sandbox_has_one(bed: Bed) -> None:
    uri = script(bed, "echo started >>starts; exec 5>&-; cat <&3")

    def act(channel: socket.socket) -> object:
        ready, *outputs = start(channel, uri)
        os.read(ready, 1)
        again = ask(channel, "start_logger", uri=uri)["error"]["message"]
        messages.close_all(outputs)
        return again

    assert "has its logger already" in with_shim(bed, act)
    assert (bed.root / "starts").read_text() == "started\n"


def test_its_record_says_that_it_may_take_its_time(bed: Bed) -> None:
    uri = script(bed, "exec 5>&-; exec cat <&3")

    def act(channel: socket.socket) -> object:
        ready, *outputs = start(channel, uri)
        os.read(ready, 1)
        entries = [json.loads(line) for line in bed.journal.read_text().splitlines()]
        messages.close_all(outputs)
        return [entry for entry in entries if entry.get("name") == "logger"]

    (entry,) = with_shim(bed, act)
    assert (entry["undo"], entry["patience"]) == ("process", 12.0)
    assert not Path(f"/proc/{entry['pid']}").exists()
