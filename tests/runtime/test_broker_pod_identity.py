"""A pod's init that cannot be made leaves neither a descriptor nor a process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime import syscalls
from kata_runtime.broker import confined_child
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.pod_identity import PodIdentity
from kata_runtime.broker.rollback import RollbackJournal
from kata_runtime.identity import SandboxIdentity


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[RollbackJournal]:
    directory = os.open(tmp_path, os.O_RDONLY)
    journal = RollbackJournal.create(directory, {"sandbox": "pod"})
    yield journal
    journal.close()
    os.close(directory)


@pytest.fixture
def pod(journal: RollbackJournal, monkeypatch: pytest.MonkeyPatch) -> PodIdentity:
    """In a process that stays in its own namespace."""
    monkeypatch.setattr(syscalls, "unshare_pids", lambda: None)
    monkeypatch.setattr(syscalls, "enter_pids", lambda namespace: os.fstat(namespace))
    return PodIdentity(SandboxIdentity("/run/test.sock", "test", "pod"), journal)


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_no_process_is_to_be_had(
    pod: PodIdentity, journal: RollbackJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    before = open_files()
    for _ in range(2):  # the second try is as the first
        with pytest.raises(BlockingIOError):
            pod.start_init(None)
        assert open_files() == before
    assert (pod.init, journal.entries) == (0, {})


def test_the_disk_is_full_when_the_init_is_written_down(
    pod: PodIdentity, journal: RollbackJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(undo: str, **_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "push", push)
    before = open_files()
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        monkeypatch.setattr(os, "fork", lambda: child.pid)
        with pytest.raises(OSError, match="No space left"):
            pod.start_init(None)
        assert child.wait() == -signal.SIGKILL
    assert open_files() == before
    assert pod.init == 0


def test_a_long_sentence_of_the_init_is_told_as_far_as_it_comes(
    pod: PodIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut by bytes, within a letter perhaps."""

    def fail(*_: object, **__: object) -> None:
        raise confined_child.StepFailedError("x" + "é" * 1000)

    monkeypatch.setattr(confined_child, "enter_nothing", fail)
    monkeypatch.setattr(PodIdentity, "user", 1000)
    before = open_files()
    with pytest.raises(RequestFailedError, match=r"cannot start the pod's init: xé+\ufffd$"):
        pod.start_init(None)
    os.wait()
    assert open_files() == before
