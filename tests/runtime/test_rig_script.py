"""The script that the rig runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rig"))

import machine


def test_a_checkouts_own_packages_are_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    script = machine.in_checkout(["pytest", "-m", "rig"], {"A": "b c"}).splitlines()
    rooms = ("agent", "configuration", "hypervisor", "runtime", "tests/support")
    assert f"export PYTHONPATH={':'.join(str(tmp_path / room) for room in rooms)}" in script
    assert "export A='b c'" in script
    assert script[-2:] == [f"cd {tmp_path}", "exec pytest -m rig"]
