"""Fixtures for tests of what a broker starts; tests/integration/conftest.py takes them in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from broker_bed import Bed, make_bed
from kata_runtime.broker.client import Broker
from kata_runtime.broker.process import fork_broker

BASE, COUNT = 1_900_000_000, 65536
"""The users that its pod may have."""


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    """A sandbox's directories."""
    with make_bed(monkeypatch) as made:
        yield made


@pytest.fixture
async def broker(bed: Bed) -> AsyncIterator[Broker]:
    """A broker whose pod has its user; it leaves nothing."""
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle)))
    await broker.take_user(BASE, COUNT)
    yield broker
    assert await broker.close() == []
