"""A small part of a suite that others wrote passes in a container as with runc: `make like-runc` runs all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

RUN = Path(__file__).parents[1] / "like_runc/run.py"
UNFIT = 2
FEW = "@(chmod|dentry|fcntl|flock|fork|link|mknod|rename|seek|symlink|xattr)"


def test_some_of_stress_ng_on_a_volume_is_as_with_runc(guest_image: Path) -> None:
    arguments = ["--suite", "stress-ng", "--place", "volume", "--only", FEW]
    command = [sys.executable, str(RUN), "--image", str(guest_image), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == UNFIT:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stdout
    assert "| stress-ng | volume | 11 | 11 | 0 |" in done.stdout
