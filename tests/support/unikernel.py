"""Unikernels for tests, compiled from tests/guests with this machine's gcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "examples" / "unikernel"
GUESTS = ROOT / "tests" / "guests"

FLAGS = (
    *(
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffreestanding",
        "-fno-pic",
        "-fno-stack-protector",
    ),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-mno-red-zone", "-mgeneral-regs-only"),
    *(
        "-static",
        "-no-pie",
        "-nostdlib",
        "-Wl,--build-id=none",
        "-Wl,-z,noexecstack",
        "-Wl,-z,max-page-size=4096",
    ),
)


def build_unikernel(directory: Path, *defines: str, source: Path = GUESTS / "commands.c") -> Path:
    """Compile a guest, once for each directory and set of defines; skips the test where there is no gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which compiles the unikernel")
    target = directory / "-".join((source.stem, *defines))
    if not target.exists():
        words = ["gcc", *FLAGS, *(f"-D{name}" for name in defines), f"-I{TOOLS}"]
        script = TOOLS / "unikernel.lds"
        subprocess.run(
            [*words, f"-Wl,-T,{script}", "-o", target, source], check=True, capture_output=True, text=True
        )
    return target
