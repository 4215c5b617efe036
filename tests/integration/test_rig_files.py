"""What the rig sees of the checkout: what it was when the rig started, under the checkout's own path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rig"))

import machine

pytestmark = pytest.mark.integration


def test_a_file_that_changes_meanwhile_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    checkout, directory, view = tmp_path / "checkout", tmp_path / "rig", tmp_path / "view"
    for room in machine.ROOMS:
        (checkout / room).mkdir(parents=True)
    for path in (directory, view):
        path.mkdir()
    file = checkout / "runtime" / "module.py"
    file.write_text("before")
    monkeypatch.setattr(machine, "CHECKOUT", checkout)
    copies = machine._copies(directory)
    file.write_text("after")
    words = ["0", view, *machine._mount_points([checkout]), "--", *copies, "--", "cat", f"{view}{file}"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", machine.SERVE, "sh", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, file.read_text()) == ("before", "after")


def test_a_checkouts_own_packages_are_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    script = machine.in_checkout(["pytest", "-m", "rig"], {"A": "b c"}).splitlines()
    rooms = ("agent", "configuration", "hypervisor", "runtime", "tests/support")
    assert f"export PYTHONPATH={':'.join(str(tmp_path / room) for room in rooms)}" in script
    assert "export A='b c'" in script
    assert script[-2:] == [f"cd {tmp_path}", "exec pytest -m rig"]
