"""`make critest` without what it needs: a sentence that says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "no critest: name its program in KATA_TEST_CRITEST"),
        ({"KATA_TEST_CRITEST": "/bin/true"}, "no images for critest: name a directory"),
        ({"KATA_TEST_CRITEST": "/bin/true", "KATA_TEST_CRITEST_IMAGES": "/dev"}, "no images for critest"),
    ],
)
def test_what_is_missing_is_named(given: dict[str, str], says: str) -> None:
    if os.geteuid() != 0:
        says = "run it as root"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KATA_TEST_CRI")}
    argv = [sys.executable, str(ROOT / "tests/critest/run.py")]
    done = subprocess.run(argv, env=environment | given, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr
