"""Fixtures of the configuration room: files made of the smallest valid configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

VALID = """\
[hypervisor.qemu]
kernel = "/boot/vmlinuz"
image = "/srv/image.erofs"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a text (or bytes) as configuration file and return its path."""

    def write_text(text: str | bytes) -> Path:
        path = tmp_path / "configuration.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_text


@pytest.fixture
def valid_text() -> str:
    """The smallest configuration that loads without looking at the host."""
    return VALID
