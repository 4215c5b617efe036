"""Guests for tests, compiled from tests/guests with this machine's gcc: Solo5's unikernels, and others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

from unikernel_image import FLAGS, TOOLS, compile_unikernel  # noqa: E402

GUESTS = ROOT / "tests" / "guests"
COMMANDS = GUESTS / "commands.c"
FRAMES_SPT = GUESTS / "frames_spt.c"
HELLO = TOOLS / "hello.c"


def build_unikernel(directory: Path, *defines: str, source: Path = COMMANDS) -> Path:
    """Compile a guest, once for each directory and set of defines; skips the test where there is no gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which compiles the unikernel")
    target = directory / "-".join((source.stem, *defines))
    if not target.exists():
        compile_unikernel(source, target, *defines)
    return target


def build_bare(directory: Path) -> Path:
    """Compile bare.c, once for each directory: 32-bit code in an ELF file of 64 bits, as Firecracker asks."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which compiles the guest")
    target = directory / "bare"
    if not target.exists():
        linked = directory / "bare32"
        command = ["gcc", "-m32", "-march=i686", *FLAGS, f"-Wl,-T,{GUESTS / 'bare.lds'}"]
        subprocess.run(
            [*command, "-o", linked, GUESTS / "bare.c"], check=True, capture_output=True, text=True
        )
        subprocess.run(["objcopy", "-O", "elf64-x86-64", linked, target], check=True)
    return target
