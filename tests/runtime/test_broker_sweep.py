"""Sandboxes that are nobody's: found by their journals, and undone; all others are left alone."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from kata_runtime import identity
from kata_runtime.broker import cleanup, rollback
from kata_runtime.ctl import main


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


def sandbox(bed: Bed) -> Shim:
    """A shim and its broker, which has made a directory."""
    path = f"{bed.shared}/web"
    return Shim(bed, lambda channel: ask(channel, "make_directory", path=path), namespace=False)


def kill_both(shim: Shim) -> None:
    """As the kernel does when memory is short: nobody undoes anything."""
    os.kill(shim.broker, signal.SIGKILL)
    wait_for_end(shim.broker)
    shim.kill()


def test_what_nobody_asks_for_is_undone(bed: Bed) -> None:
    kill_both(sandbox(bed))
    assert os.path.isdir(f"{bed.shared}/web")
    assert cleanup.sweep(identity.STATE_ROOT) == []
    assert bed.directory.exists()  # containerd has the bundle, and will delete the sandbox
    shutil.rmtree(bed.bundle)
    assert cleanup.sweep(identity.STATE_ROOT) == []
    assert not bed.directory.exists()


def test_a_sandbox_that_runs_is_left_alone(bed: Bed) -> None:
    shim = sandbox(bed)
    shutil.rmtree(bed.bundle)
    assert cleanup.sweep(identity.STATE_ROOT) == []
    assert os.path.isdir(f"{bed.shared}/web")
    shim.kill()
    wait_for_end(shim.broker)


@pytest.mark.parametrize("content", [None, "", "{}\n", '{"sandbox": "x", "bundle": "/none"}\n'])
def test_what_says_not_whose_it_is_is_left_alone(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "one").mkdir()
    if content is not None:
        (tmp_path / "one" / rollback.NAME).write_text(content)
    assert cleanup.sweep(str(tmp_path)) == []
    assert sorted(os.listdir(tmp_path)) == ["file", "one"]


def test_kata_ctl_cleanup_says_what_it_could_not_undo(
    bed: Bed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_both(sandbox(bed))
    shutil.rmtree(bed.bundle)
    (bed.directory / "mine").mkdir()
    (bed.directory / "mine" / "file").write_text("not the runtime's")
    assert main.main(["cleanup"]) == 1
    assert f"left behind: cannot remove {bed.directory}/mine: Directory not empty" in capsys.readouterr().err
    shutil.rmtree(bed.directory / "mine")
    assert main.main(["cleanup"]) == 0
    assert main.main(["cleanup"]) == 0
