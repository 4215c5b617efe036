"""OCI hooks: declared, learned before the seal, run once, with what the specification promises, bounded."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from kata_runtime.broker import begun_hooks, cleanup, hook_declaration, hook_runner, messages
from kata_runtime.broker.errors import RequestFailedError

STATE = {"ociVersion": "1.1.0", "id": "web", "bundle": "/", "annotations": {"nerdctl/name": "x\ny"}}


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


def sh(script: str, **fields: Any) -> dict[str, Any]:
    """A hook that runs a script."""
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **fields}


def declared(kind: str, *entries: dict[str, Any], bundle: str = "/") -> dict[str, Any]:
    return {"hooks": {kind: list(entries)}, "state": {**STATE, "bundle": bundle}}


# -- declared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"prestart": {}}, None),
        ({"prestart": {"path": "/a"}}, "hooks.prestart must be a list"),
        ({"poststop": ["/a"]}, r"hooks.poststop\[0\] must be an object"),
        ({"poststop": [{"path": "/a"}, {"path": "a"}]}, r"hooks.poststop\[1\].path must be an absolute path"),
        ({"createRuntime": [{"path": "/a", "args": "a"}]}, "args must be a list of strings"),
        ({"createRuntime": [{"path": "/a", "env": ["A=\0"]}]}, "env must be a list of strings"),
        ({"createRuntime": [{"path": "/a", "timeout": 0}]}, "timeout must be a number of seconds"),
        ({"createRuntime": [{"path": "/a", "timeout": True}]}, "timeout must be a number of seconds"),
        ({"createRuntime": [{"path": "/a", "timeout": 1.5}]}, "timeout must be a number of seconds"),
        ("x", None),
        ({"startContainer": ["in the guest"]}, None),
    ],
)
def test_what_is_no_hook_is_named(tmp_path: Path, hooks: Any, message: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hooks": hooks}))
    if message is None:
        assert hook_declaration.read(str(tmp_path), "web")["hooks"] == {}
        return
    with pytest.raises(RequestFailedError, match=message):
        hook_declaration.read(str(tmp_path), "web")


def test_the_state_has_the_annotations_whole(tmp_path: Path) -> None:
    spec = {"ociVersion": "1.1.0", "annotations": {"a/b": "c"}, "hooks": {"poststop": [{"path": "/a"}]}}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    found = hook_declaration.read(str(tmp_path), "web")
    assert found["state"] == {
        "ociVersion": "1.1.0",
        "id": "web",
        "bundle": str(tmp_path),
        "annotations": {"a/b": "c"},
    }
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        if text == "[]":
            assert hook_declaration.read(str(tmp_path), "web")["hooks"] == {}
        else:
            with pytest.raises(RequestFailedError, match="is not JSON"):
                hook_declaration.read(str(tmp_path), "web")


# -- run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"), [("createRuntime", "creating"), ("poststart", "running"), ("poststop", "stopped")]
)
def test_a_hook_gets_the_state_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: str
) -> None:
    monkeypatch.setenv("SECRET", "x")
    open_here = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(open_here, True)
    script = "cat > state; env > env; pwd > cwd; ls /proc/self/fd > fds; echo $0 $1 > args"
    entry = {"path": "/bin/sh", "args": ["other", "-c", script, "zero", "one"], "env": ["A=b=c"]}
    assert hook_runner.run_all(declared(kind, entry, bundle=str(tmp_path)), kind, 77) == []
    os.close(open_here)
    expected = {**STATE, "bundle": str(tmp_path), "status": status, "pid": 77}
    assert json.loads((tmp_path / "state").read_text()) == expected
    assert "A=b=c" in (tmp_path / "env").read_text().split()
    assert "SECRET" not in (tmp_path / "env").read_text()
    assert (tmp_path / "cwd").read_text().strip() == str(tmp_path)
    assert (tmp_path / "args").read_text() == "zero one\n"
    assert str(open_here) not in (tmp_path / "fds").read_text().split()


def test_a_state_that_nobody_reads_and_one_that_is_large() -> None:
    large = declared("poststop", sh("exit 0"), sh("sleep 0.1; exec cat >/dev/null"))
    large["state"]["annotations"] = {"a": "x" * 1_000_000}
    assert hook_runner.run_all(large, "poststop") == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (sh("echo out; echo err >&2; exit 3"), "failed with exit status 3: out\nerr"),
        (sh("kill -SEGV $$"), "was killed by signal 11"),
        ({"path": "/no/such/hook"}, "cannot be run: No such file or directory"),
        ({"path": "/etc/passwd"}, "cannot be run: Permission denied"),
        (sh("printf '\\033[31mred'; exit 1"), "failed with exit status 1: \\x1b[31mred"),
        (sh("yes | head -c 1000000; exit 1"), "y\ny"),
        (sh("echo begun; sleep 1000", timeout=1), "was killed: its timeout of 1 s was over: begun"),
        (sh("sleep 1000 & echo $!; wait", timeout=1), "its timeout of 1 s was over"),
    ],
)
def test_a_hook_that_fails_says_why(entry: dict[str, Any], said: str) -> None:
    (line,) = hook_runner.run_all(declared("createRuntime", entry), "createRuntime")
    assert line.startswith(f"the createRuntime hook {entry['path']} ")
    assert said in line
    assert len(line) < 3 * hook_runner.MAX_OUTPUT
    if "$!" in str(entry):
        wait_for_end(int(line.split()[-1]))  # the rest of its group too


def test_after_a_failure_no_other_runs_unless_it_is_a_warning(tmp_path: Path) -> None:
    entries = [sh("exit 1"), sh(f"touch {tmp_path}/ran; exit 2")]
    assert len(hook_runner.run_all(declared("prestart", *entries), "prestart")) == 1
    assert not (tmp_path / "ran").exists()
    lines = hook_runner.run_all(declared("poststop", *entries), "poststop")
    assert ["(1 of 2)" in lines[0], "(2 of 2)" in lines[1]] == [True, True]
    assert (tmp_path / "ran").exists()


# -- learned -----------------------------------------------------------------------------------------------


def write(bed: Bed, **hooks: list[dict[str, Any]]) -> None:
    (bed.bundle / "config.json").write_text(json.dumps({"ociVersion": "1.1.0", "hooks": hooks}))


def run(channel: socket.socket, kind: str) -> Any:
    """Run the hooks of a kind; returns what the runner answers, or the broker's error."""
    messages.send(channel, messages.encode({"id": 1, "op": "run_hooks", "kind": kind}))
    reply, descriptors = messages.receive(channel)
    if "error" in reply:
        return reply["error"]["message"]
    (answer,) = descriptors
    os.set_blocking(answer, True)
    with open(answer, "rb") as stream:
        return json.loads(stream.read())


def test_each_kind_runs_once_and_after_the_seal_only_what_is_due_then(bed: Bed) -> None:
    entry = sh(f"echo x >> {bed.data}/ran")
    write(bed, createRuntime=[entry], createContainer=[entry], poststart=[entry], poststop=[entry])

    def act(channel: socket.socket) -> Any:
        answers = [ask(channel, "learn_hooks")["result"]["kinds"]]
        answers += [run(channel, kind) for kind in ("prestart", "createRuntime", "createRuntime")]
        (bed.bundle / "config.json").write_text(json.dumps({"hooks": {"prestart": [entry]}}))
        answers.append(ask(channel, "learn_hooks")["error"]["message"])
        ask(channel, "announce_seal", mode="enforce", policy="p", within=3600)
        answers.append(ask(channel, "learn_hooks")["error"]["message"])
        answers += [run(channel, kind) for kind in ("createContainer", "poststart", "poststart", "poststop")]
        return answers

    shim = Shim(bed, act, namespace=False)
    no = "run_hooks: no {} hooks are left to run"
    assert shim.result == [
        ["createRuntime", "createContainer", "poststart", "poststop"],
        *(no.format("prestart"), [], no.format("createRuntime")),
        "learn_hooks: the sandbox has its hooks already",
        "learn_hooks is refused after the seal: it is allowed before the seal only",
        "run_hooks: createContainer hooks are refused after the seal",
        *([], no.format("poststart"), []),
    ]
    assert (bed.data / "ran").read_text() == "x\n" * 3
    shim.kill()
    wait_for_end(shim.broker)
    assert (bed.data / "ran").read_text() == "x\n" * 3


def learn(channel: socket.socket) -> Any:
    return ask(channel, "learn_hooks")


def test_poststop_hooks_run_when_the_shim_was_killed(bed: Bed) -> None:
    write(bed, poststop=[sh(f"cat > {bed.data}/state"), sh("exit 1"), sh(f"touch {bed.data}/last")])
    shim = Shim(bed, learn, namespace=False)
    shim.kill()
    wait_for_end(shim.broker)
    state = json.loads((bed.data / "state").read_text())
    assert (state["id"], state["status"], "pid" in state) == (bed.identity.id, "stopped", False)
    assert (bed.data / "last").exists()
    assert not bed.directory.exists()


def test_poststop_hooks_run_when_broker_and_shim_were_killed_and_once(bed: Bed) -> None:
    write(bed, poststop=[sh(f"cat > /dev/null; echo x >> {bed.data}/ran")])
    shim = Shim(bed, learn, namespace=False)
    os.kill(shim.broker, signal.SIGKILL)
    shim.kill()
    assert not (bed.data / "ran").exists()
    for _ in range(2):
        assert cleanup.clean_up(bed.identity) == []
    assert (bed.data / "ran").read_text() == "x\n"


def test_a_hook_ends_with_those_who_wait_for_it(bed: Bed) -> None:
    write(bed, createRuntime=[sh(f"echo $$ > {bed.data}/pid; sleep 1000")], poststop=[sh("exit 0")])

    def act(channel: socket.socket) -> int:
        learn(channel)
        messages.send(channel, messages.encode({"id": 1, "op": "run_hooks", "kind": "createRuntime"}))
        _, descriptors = messages.receive(channel)
        while not (bed.data / "pid").exists() or not (bed.data / "pid").read_text():
            pass
        messages.close_all(descriptors)
        return int((bed.data / "pid").read_text())

    shim = Shim(bed, act, namespace=False)
    wait_for_end(shim.result)
    shim.kill()
    wait_for_end(shim.broker)


def test_what_is_not_declared_is_learned_by_nobody(bed: Bed) -> None:
    write(bed, startContainer=[{"path": "/in/guest"}])
    shim = Shim(bed, lambda channel: [learn(channel)["result"], run(channel, "poststop")], namespace=False)
    assert shim.result == [{"kinds": []}, "run_hooks: no poststop hooks are left to run"]
    shim.kill()
    wait_for_end(shim.broker)


# -- whoever is killed -------------------------------------------------------------------------------------

NUMBER = 3
"""Of poststop hooks: each appends its number to a file."""


def ran(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def appending(path: Path, also: str = "") -> list[dict[str, Any]]:
    return [sh(f"cat >/dev/null; echo {number} >> {path}; {also}") for number in range(NUMBER)]


class Killer:
    """A trace function that kills its process when it comes to another line, the one whose turn it is."""

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in (hook_runner.__file__, begun_hooks.__file__):
            return None
        if event == "line":
            self._seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(self._seen) > self._turn:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def run_and_be_killed(hooks: dict[str, Any], begun: int, turn: int) -> bool:
    """Run hooks in a process that is killed at a line; whether it was. Its children have ended too."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.set_inheritable(write, True)
        sys.settrace(Killer(turn))
        hook_runner.run_all(hooks, "poststop", begun=begun)
        sys.settrace(None)
        os._exit(0)
    os.close(write)
    killed = os.waitpid(pid, 0)[1] != 0
    assert os.read(read, 1) == b""  # the end of all who have the other end
    os.close(read)
    return killed


def test_each_is_begun_once_wherever_the_process_that_runs_them_is_killed(tmp_path: Path) -> None:
    turn = 0
    while True:
        place = tmp_path / str(turn)
        place.mkdir()
        hooks = declared("poststop", *appending(place / "ran"))
        begun = begun_hooks.open_beside(str(place / "hooks.json"))
        killed = run_and_be_killed(hooks, begun, turn)
        before, first = begun_hooks.read(begun), ran(place / "ran")
        assert set(first) <= before
        assert hook_runner.run_all(hooks, "poststop", begun=begun) == []
        assert begun_hooks.read(begun) == set(range(NUMBER))
        found = ran(place / "ran")
        assert len(found) == len(set(found)), f"a hook ran twice when all was killed at line {turn}"
        # Missing is at most what was on its way when its parent was killed, and nothing that came later.
        missing = set(range(NUMBER)) - set(found)
        assert missing <= before
        assert len(missing) <= 1
        os.close(begun)
        if not killed and len(first) == NUMBER:
            break
        turn += 1
    assert turn > 40, "too few lines were tried"


def test_what_a_killed_runner_has_not_begun_is_run_by_the_cleanup(bed: Bed) -> None:
    write(bed, poststop=appending(bed.data / "ran", "kill -9 $PPID"))
    shim = Shim(bed, learn, namespace=False)
    shim.kill()
    wait_for_end(shim.broker)
    assert ran(bed.data / "ran") == [0]
    assert bed.directory.exists()
    record = bed.directory / "hooks.json"
    kept = json.loads(record.read_text())
    kept["hooks"]["poststop"] = appending(bed.data / "ran")  # these kill nobody
    record.write_text(json.dumps(kept))
    assert cleanup.clean_up(bed.identity) == []
    assert ran(bed.data / "ran") == [0, 1, 2]
    assert not bed.directory.exists()


def test_a_runner_that_is_killed_before_it_was_asked_is_said_to_have_left_them(bed: Bed) -> None:
    write(bed, poststop=appending(bed.data / "ran"))

    def act(channel: socket.socket) -> Any:
        learn(channel)
        entries = [json.loads(line) for line in bed.journal.read_text().splitlines()]
        (runner,) = [entry["pid"] for entry in entries if entry.get("name") == "hooks"]
        os.kill(runner, signal.SIGKILL)
        return ask(channel, "close")["result"]

    shim = Shim(bed, act, namespace=False)
    wait_for_end(shim.broker)
    shim.kill()
    assert "3 of 3 poststop hooks are left to be run" in str(shim.result)
    assert cleanup.clean_up(bed.identity) == []
    assert ran(bed.data / "ran") == [0, 1, 2]


def test_a_cleanup_that_is_killed_in_a_hook_is_gone_on_with(bed: Bed) -> None:
    write(bed, poststop=appending(bed.data / "ran", f"test -e {bed.data}/spared || kill -9 $PPID"))
    shim = Shim(bed, learn, namespace=False)
    os.kill(shim.broker, signal.SIGKILL)
    shim.kill()
    for number in range(NUMBER):
        pid = os.fork()
        if pid == 0:
            cleanup.clean_up(bed.identity)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert ran(bed.data / "ran") == list(range(number + 1))
    (bed.data / "spared").touch()
    assert cleanup.clean_up(bed.identity) == []
    assert ran(bed.data / "ran") == [0, 1, 2]


def test_the_next_sandbox_of_this_name_has_its_own(bed: Bed) -> None:
    for _ in range(2):
        write(bed, poststop=appending(bed.data / "ran"))
        shim = Shim(bed, learn, namespace=False)
        assert shim.result["result"] == {"kinds": ["poststop"]}
        os.kill(shim.broker, signal.SIGKILL)
        shim.kill()
        wait_for_end(shim.broker)
    assert ran(bed.data / "ran") == [0, 1, 2]
    assert cleanup.clean_up(bed.identity) == []
    assert ran(bed.data / "ran") == [0, 1, 2] * 2
