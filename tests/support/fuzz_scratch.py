"""A directory for fuzzers whose target is a file by name: one for all inputs, never emptied in between."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kata-fuzz-")


def directory() -> Path:
    """The directory. It is removed when the interpreter ends; a fuzzer that is cut off leaves it behind."""
    return Path(_made().name)
