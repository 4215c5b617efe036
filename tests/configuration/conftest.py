"""Fixtures of the configuration room: files made of the smallest valid configuration; the corpus' tally."""

from __future__ import annotations

from collections import Counter
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


CORPUS_TALLY: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture
def corpus_tally(pytestconfig: pytest.Config) -> Counter[str]:
    """Count the faults of the corpus: files, seeded, found, unexpected."""
    return pytestconfig.stash.setdefault(CORPUS_TALLY, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Report how many of the corpus' faults were found."""
    if tally := config.stash.get(CORPUS_TALLY, None):
        terminalreporter.write_line(
            f"corpus: {tally['files']} broken files, {tally['seeded']} faults seeded, "
            f"{tally['found']} found, {tally['unexpected']} unexpected"
        )
