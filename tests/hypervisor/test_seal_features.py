"""What each driver says that it needs after the seal, held to what the tools count for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kata_configuration.models import AVAILABLE, HYPERVISORS
from kata_hypervisor import registry
from kata_hypervisor.contract import Vmm
from kata_hypervisor.driver_policy import FEATURES
from seal_cases import CASES


@pytest.mark.parametrize(("name", "make"), CASES)
def test_no_driver_needs_more_than_is_counted(name: str, make: Callable[[], Vmm]) -> None:
    assert make().seal_features <= FEATURES[name]


@pytest.mark.parametrize("name", FEATURES)
def test_no_driver_is_counted_for_what_it_never_needs(name: str) -> None:
    needed = [make().seal_features for one, make in CASES if one == name]
    assert frozenset[str]().union(*needed) == FEATURES[name]


def test_every_driver_is_counted() -> None:
    assert {info.name for info in registry.DRIVERS} == set(AVAILABLE) == set(HYPERVISORS)
    assert set(FEATURES) == {*AVAILABLE, "dragonball-unikernel", "dragonball-template"}
