"""The stand-in for a solo5-hvt before 0.11, compiled with what this machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "guests" / "old_tender.c"

COMPILERS = {
    "glibc": ["gcc"],
    "glibc, static": ["gcc", "-static"],
    "musl": ["musl-gcc"],
    "musl, static": ["musl-gcc", "-static"],
}


def build_old_tender(directory: Path, kind: str = "glibc") -> Path:
    """Compile it, under the name solo5-hvt; skips the test where there is no compiler for this C library."""
    compiler, *options = COMPILERS[kind]
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}, which compiles the stand-in")
    target = directory / "solo5-hvt"
    command = [compiler, *options, "-O1", "-w", "-o", str(target), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "-static" in options:
        pytest.skip(f"{compiler} cannot link statically here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return target
