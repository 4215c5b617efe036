"""What all tests share: one event loop's kind, and the helpers in tests/support."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Nothing here depends on time: a machine that is busy must not fail a test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture
def anyio_backend() -> str:
    """Everything asynchronous here runs on asyncio."""
    return "asyncio"
