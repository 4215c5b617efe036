"""The integration tests' second try: chance does not end a run, a fault does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci/second_try.py"
UNSTEADY = """
from pathlib import Path
def test_right(): pass
def test_by_chance():
    seen = Path("seen")
    first = not seen.exists()
    seen.touch()
    assert not first
"""


def run(where: Path, tests: str) -> tuple[int, str]:
    """The exit status and output for tests of this text, outside the project."""
    (where / "pytest.ini").write_text("[pytest]\n")
    (where / "test_it.py").write_text(tests)
    done = subprocess.run(
        [sys.executable, SCRIPT, "-q", "test_it.py"], cwd=where, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def test_what_passes_is_run_once(tmp_path: Path) -> None:
    status, output = run(tmp_path, "def test_right(): pass\n")
    assert (status, "once more" in output) == (0, False)


def test_what_fails_by_chance_is_named(tmp_path: Path) -> None:
    status, output = run(tmp_path, UNSTEADY)
    assert status == 0
    assert "UNSTEADY: failed once and passed alone: test_it.py::test_by_chance" in output


def test_what_fails_twice_fails(tmp_path: Path) -> None:
    status, output = run(tmp_path, "def test_wrong(): assert False\n")
    assert (status, "once more" in output, "UNSTEADY" in output) == (1, True, False)


def test_many_failures_are_no_chance(tmp_path: Path) -> None:
    status, output = run(tmp_path, "".join(f"def test_{n}(): assert 0\n" for n in range(4)))
    assert (status, "once more" in output) == (1, False)


@pytest.mark.parametrize("tests", ["raise ImportError\n", "# none\n"])
def test_what_is_no_failed_test_is_passed_on(tmp_path: Path, tests: str) -> None:
    status, output = run(tmp_path, tests)
    assert status != 0
    assert "once more" not in output
