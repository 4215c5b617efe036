"""What all tests share: one event loop's kind, the helpers in tests/support, and the tools in release."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, and nothing of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "support"), str(HERE.parent / "release")]


@pytest.fixture
def anyio_backend() -> str:
    """Everything asynchronous here runs on asyncio."""
    return "asyncio"
