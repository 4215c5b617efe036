"""The reaper, in processes of its own: it waits for every child, and pytest's are not its business."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from kata_agent.guest.reaper import exit_status

PRELUDE = """
import os, signal, sys, threading, time
from kata_agent.guest import syscalls
from kata_agent.guest.reaper import Reaper
reaper = Reaper()
reaper.start()
null = os.open("/dev/null", os.O_RDWR)
stdio = (null, 2, null)  # what a child writes comes out as this process's stderr
def sh(script):
    return reaper.run(["/bin/sh", "-c", script], stdio)
def status_of(pid):
    ended, got = threading.Event(), []
    reaper.watch(pid, lambda status: (got.append(status), ended.set()))
    assert ended.wait(10)
    return got[0]
"""


def run(script: str) -> str:
    """Run a script after the prelude; returns what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_exit_status_of_wait_statuses() -> None:
    assert exit_status(42 << 8) == 42
    assert exit_status(signal.SIGKILL) == 137
    assert exit_status(signal.SIGSEGV | 0x80) == 139  # with a core dump


def test_run_gives_code_or_signal() -> None:
    assert (
        run("print(sh('exit 0'), sh('exit 42'), sh('kill -9 $$'), sh('kill -TERM $$'))") == "0 42 137 143\n"
    )


def test_many_at_once_get_their_own_status() -> None:
    script = """
results = {}
def one(code):
    results[code] = sh(f'exit {code}')
threads = [threading.Thread(target=one, args=(code,)) for code in range(40)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert results == {code: code for code in range(40)}, results
"""
    assert run(script) == ""


def test_orphan_that_ends_before_it_is_known() -> None:
    script = """
syscalls.become_subreaper()
reader, writer = os.pipe()
with reaper.expecting():
    # It outlives its shell, which might wait for it otherwise.
    reaper.run(["/bin/sh", "-c", "(sleep 0.1; exit 7) & echo $!"], (null, writer, null))
    pid = int(os.read(reader, 100))
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    print(status_of(pid))
"""
    assert run(script) == "7\n"


def test_orphan_that_nobody_expects_is_forgotten() -> None:
    script = """
syscalls.become_subreaper()
sh("(exit 7) &")
with reaper.expecting():
    pass
assert not reaper._unknown
"""
    assert run(script) == ""


def test_signal_reaches_only_what_still_runs() -> None:
    script = """
got = []
threading.Thread(target=lambda: got.append(sh("exec sleep 100"))).start()
deadline = time.monotonic() + 10
while not reaper._watchers and time.monotonic() < deadline:
    time.sleep(0.01)
(pid,) = reaper._watchers
assert reaper.signal(pid, 0)
assert reaper.signal(pid, signal.SIGKILL)
while not got and time.monotonic() < deadline:
    time.sleep(0.01)
assert got == [137], got
assert not reaper.signal(pid, signal.SIGKILL)
assert not reaper.signal(os.getpid(), 0)
"""
    assert run(script) == ""


def test_children_have_signals_and_descriptors_as_usual() -> None:
    script = """
leak = os.open("/dev/null", os.O_RDONLY)
stdio = (null, 2, 2)
sh("grep -E 'Sig(Blk|Ign)' /proc/self/status; echo $(ls /proc/self/fd)")
"""
    blocked, ignored, descriptors = run(script).splitlines()
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0
    assert descriptors == "0 1 2 3"  # the last one is ls reading the list


def test_a_watcher_that_fails_does_not_end_the_reaper() -> None:
    script = """
pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
def fail(status):
    raise KeyError("ours")
reaper.watch(pid, fail)
reaper.signal(pid, signal.SIGKILL)
while pid in reaper._watchers:
    time.sleep(0.01)
print(sh("exit 4"), sh("exit 5"))
"""
    assert sorted(run(script).splitlines()) == [
        "4 5",
        "kata-agent: the end of a process could not be recorded: KeyError: 'ours'",
    ]


def test_a_program_that_does_not_end_is_killed() -> None:
    script = """
try:
    reaper.run(["/bin/sh", "-c", "exec sleep 1000"], stdio, 0.2)
except TimeoutError as error:
    print(error)
"""
    assert run(script) == "it did not end within 0.2 s and was killed\n"


CONTAINER = """
import tempfile
from kata_agent.guest.cgroup import Cgroup
from kata_agent.guest.container import Container
from kata_agent.guest.errors import GuestError
from kata_agent.guest.runtime import Crun
from kata_agent.guest.stdio import CalledStdio
scratch = tempfile.mkdtemp()
def container(commands):
    program = f"{scratch}/crun"
    with open(program, "w") as file:
        file.write('#!/bin/sh\\nlog="${4#--log=}"; case "$5" in\\n' + commands + '\\nesac')
        os.fchmod(file.fileno(), 0o755)
    crun = Crun(reaper, scratch=scratch, program=program)
    one = Container("one", {"process": {"args": ["true"]}}, Cgroup("/absent"), crun=crun, reaper=reaper)
    one._prepare_bundle = one._remove_bundle = lambda: None
    return one
def message_of(action, *arguments):
    try:
        action(*arguments)
    except GuestError as error:
        print(error.message)
"""


def test_a_failing_removal_does_not_hide_why_the_creation_failed() -> None:
    script = """
commands = "create) echo the reason >$log; exit 1;; delete) echo the undoing >$log; exit 1;;"
message_of(container(commands).create, CalledStdio())
"""
    assert sorted(run(CONTAINER + script).splitlines()) == [
        "kata-agent: undo the creation of container one: the undoing",
        "the reason",
    ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("", "its process was killed, or had no room in the guest; try again"),
        ("kill -9 $(cat ${0%/*}/init); ", "the container ended meanwhile, and all its processes with it"),
    ],
)
def test_a_silent_failure_of_an_exec_has_a_reason(fault: str, reason: str) -> None:
    script = f"""
syscalls.become_subreaper()
create = "create) sleep 1000 >&- 2>&- & echo $! >$9; cp $9 ${{0%/*}}/init;;"
one = container(create + "exec) {fault}exit 255;;")
one.create(CalledStdio())
message_of(one.execute, "two", {{"args": ["true"]}}, CalledStdio())
reaper.signal(one.init.pid, signal.SIGKILL)
"""
    said = run(CONTAINER + script)
    assert said == f"crun exec one ended with status 255 and gave no reason: {reason}\n"


def test_program_that_cannot_start() -> None:
    assert "FileNotFoundError" in run(
        """
try:
    reaper.run(["/nonexistent"], stdio)
except OSError as error:
    print(type(error).__name__)
"""
    )


@pytest.mark.parametrize("signals", [3])
def test_collect_without_children_returns(signals: int) -> None:
    assert run(f"[reaper.collect() for _ in range({signals})]") == ""
