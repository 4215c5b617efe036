"""What a process has open, by names that tests compare."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kata_runtime import device_names


def held_files(pid: int) -> list[str]:
    """The name of each descriptor: a device's in /dev, by whatever mount it was opened, else its link's."""
    return [_name(path) for path in Path(f"/proc/{pid}/fd").iterdir()]


def _name(path: Path) -> str:
    found = path.stat()
    device = device_names.path_of_character(found.st_rdev) if stat.S_ISCHR(found.st_mode) else ""
    return device or os.readlink(path)
