"""The configuration files that Kata Containers ships, made from a checkout or a git directory of its sources.

Their templates are filled by upstream's own Makefiles, in a copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

VARIABLE = "KATA_TEST_UPSTREAM"

# Folder of a runtime -> what its Makefile calls the architecture, and what else it needs to make every file.
RUNTIMES = {
    "runtime-go": ("src/runtime", ["ARCH=amd64"]),
    "runtime-rs": ("src/runtime-rs", ["ARCH=x86_64", "REMOTE=1"]),
}
NEEDED = ("Makefile", "arch", "config", "VERSION")
SHARED = ("utils.mk", "VERSION", "versions.yaml", "src/runtime/golang.mk")


def source() -> Path | None:
    """Return the folder that the environment names."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def why_not() -> str:
    """Say why the files cannot be made; "" when they can."""
    if source() is None:
        return f"{VARIABLE} names no checkout or git directory of kata-containers/kata-containers"
    missing = [program for program in ("git", "make", "sed", "tar") if shutil.which(program) is None]
    return f"{', '.join(missing)} not found" if missing else ""


def make(into: Path) -> dict[str, list[Path]]:
    """Make the files below a folder; returns them by runtime.

    Raises:
        RuntimeError: the source is none, or a template could not be filled.
    """
    upstream = source()
    if upstream is None:
        raise RuntimeError(why_not())
    wanted = [f"{folder}/{name}" for folder, _ in RUNTIMES.values() for name in NEEDED] + [*SHARED]
    if (upstream / "src").is_dir():
        for name in wanted:
            copy = shutil.copytree if (upstream / name).is_dir() else shutil.copyfile
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            copy(upstream / name, into / name)
    else:
        archive = _run(["git", "-C", str(upstream), "archive", "HEAD", *wanted], into)
        _run(["tar", "-x"], into, archive)
    return {name: _fill(into / folder, options) for name, (folder, options) in RUNTIMES.items()}


def _fill(folder: Path, options: list[str]) -> list[Path]:
    files = sorted(template.with_suffix("") for template in (folder / "config").glob("*.toml.in"))
    _run(["make", "-s", *options, *(f"config/{file.name}" for file in files)], folder)
    if absent := [file.name for file in files if not file.is_file()]:
        raise RuntimeError(f"{folder}: not made: {', '.join(absent)}")
    return files


def _run(command: list[str], folder: Path, given: bytes = b"") -> bytes:
    done = subprocess.run(command, cwd=folder, input=given, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout
