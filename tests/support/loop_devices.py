"""Block devices of the host for tests: loop devices on files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE = 4 << 20


@contextmanager
def loop_device(file: Path, *options: str, size: int = SIZE) -> Iterator[Path]:
    """A block device of the host on a file of so many bytes; skips where there is none."""
    file.touch()
    os.truncate(file, size)
    command = ["losetup", "--find", "--show", *options, str(file)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    if "--read-only" not in options:
        subprocess.run(["blockdev", "--setrw", str(device)], check=True)  # as who had it before has left it
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def number_of(device: Path) -> str:
    """Its MAJOR:MINOR."""
    number = device.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"
