"""Volumes as a kubelet has them on the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(at: Path, *options: str, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system of its own at a path that is made for it."""
    at.mkdir(parents=True)
    subprocess.run(["mount", "-t", kind, *(f"-o{option}" for option in options), "volume", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


class AtomicVolume:
    """A volume that is brought up to date as the kubelet's AtomicWriter does (atomic_writer.go)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = 0

    def write(self, files: dict[str, str], *, mode: int = 0o644, group: int = 0) -> None:
        """Have these files, and no others."""
        self.path.mkdir(parents=True, exist_ok=True)
        old, self._version = self._version, self._version + 1
        version = self.path / f"..2026_{self._version}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
            os.chown(version / name, -1, group)
            (version / name).chmod(mode)
        (self.path / "..data_tmp").symlink_to(version.name)
        (self.path / "..data_tmp").rename(self.path / "..data")
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        for path in self.path.iterdir():
            if not path.name.startswith("..") and path.name not in files:
                path.unlink()
        if old:
            for path in (self.path / f"..2026_{old}").iterdir():
                path.unlink()
            (self.path / f"..2026_{old}").rmdir()
