"""What is written for a thread that gets a CPU of its own, and what of it is undone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.broker import cgroups, cleanup, cpuset
from kata_runtime.broker.cpuset import Cpuset
from kata_runtime.broker.path_scope import PathScope
from kata_runtime.broker.rollback import RollbackJournal

FILES = {
    1: {
        "cpuset.cpus": "",
        "cpuset.mems": "0-1\n",
        "tasks": "",
        "cgroup.procs": "",
        "cpuset.effective_cpus": "0-2\n",
    },
    2: {
        "cgroup.type": "domain",
        "cgroup.subtree_control": "pids",
        "cpuset.cpus": "",
        "cgroup.threads": "",
        "cgroup.procs": "",
        "cpuset.cpus.effective": "0-2\n",
    },
}


def fill(directory: Path, version: int) -> None:
    for name, text in FILES[version].items():
        (directory / name).write_text(text)


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def leaf(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A leaf whose directories look like those of the kernel."""
    leaf = tmp_path / "leaf"
    leaf.mkdir()
    fill(leaf, version)
    make = os.mkdir

    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(path, mode, dir_fd=dir_fd)
        fill(leaf / path, version)

    def rmdir(directory: str) -> None:
        for name in FILES[version]:
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(cgroups, "remove", rmdir)
    return leaf


def test_a_thread_gets_a_group_with_its_cpu(leaf: Path, version: int) -> None:
    found = Cpuset(str(leaf), version)
    assert found.cpus == {0, 1, 2}
    recorded: list[str] = []

    def record(directory: str) -> None:
        assert not os.path.exists(directory), "recorded after it was made"
        recorded.append(directory)

    found.hold("vcpu0", 4711, 2, record)
    group = leaf / "vcpu0"
    assert recorded == [str(group)]
    assert (group / "cpuset.cpus").read_text() == "2"
    if version == 1:
        assert (group / "cpuset.mems").read_text().strip() == "0-1"
        assert (group / "tasks").read_text() == "4711"
    else:
        assert (group / "cgroup.type").read_text() == "threaded"
        assert (group / "cgroup.threads").read_text() == "4711"
        assert (leaf / "cgroup.subtree_control").read_text() == "+cpuset"
    assert (group / "cgroup.procs").read_text() == ""  # its process stays where it is


def test_it_goes_back_to_the_leaf(leaf: Path, version: int) -> None:
    Cpuset(str(leaf), version).hold("vcpu0", 4711, 2, lambda _: None)
    cpuset.release(f"{leaf}/vcpu0", str(leaf))
    assert (leaf / ("tasks" if version == 1 else "cgroup.threads")).read_text() == "4711"
    assert not (leaf / "vcpu0").exists()
    cpuset.release(f"{leaf}/vcpu0", str(leaf))


def test_whoever_cleans_up_undoes_it_too(leaf: Path, version: int, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    state = os.open(tmp_path / "state", os.O_RDONLY)
    journal = RollbackJournal.create(state, {"sandbox": "pod"})
    Cpuset(str(leaf), version).hold(
        "vcpu0", 4711, 2, lambda directory: journal.push(cpuset.UNDO, path=directory, origin=str(leaf))
    )
    journal.close()
    again = RollbackJournal.load(state)
    assert again is not None
    scope = PathScope(str(tmp_path / "shared"), -1, "", -1)
    assert cleanup.roll_back(again, scope, {os.getpid()}, mounted=False) == []
    assert not (leaf / "vcpu0").exists()
    os.close(state)
