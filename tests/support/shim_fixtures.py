"""Fixtures for the tests of the shim's API; tests/integration/conftest.py takes them in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shim_harness import Lab
from shim_pod import Pod


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """As for all tests, but for fixtures that outlive one."""
    return "asyncio"


@pytest.fixture(scope="session")
async def lab(guest_image: Path) -> AsyncIterator[Lab]:
    """What shims need, and a sink for their events."""
    lab = Lab(guest_image)
    async with lab.sink:
        yield lab
        await lab.close()
    lab.remove()


@pytest.fixture(scope="module")
async def shim_pod(lab: Lab) -> AsyncIterator[Pod]:
    """A pod for the tests of one module; nothing of it is left after them."""
    before = lab.leftovers()
    pod = await Pod.start(lab)
    try:
        yield pod
    finally:
        await pod.shim.close()
    left = before.settle()
    assert left == [], left
