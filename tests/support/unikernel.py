"""Unikernels for tests, compiled from tests/guests with this machine's gcc."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

from unikernel_image import TOOLS, compile_unikernel  # noqa: E402

COMMANDS = ROOT / "tests" / "guests" / "commands.c"
HELLO = TOOLS / "hello.c"


def build_unikernel(directory: Path, *defines: str, source: Path = COMMANDS) -> Path:
    """Compile a guest, once for each directory and set of defines; skips the test where there is no gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which compiles the unikernel")
    target = directory / "-".join((source.stem, *defines))
    if not target.exists():
        compile_unikernel(source, target, *defines)
    return target
