"""What a machine is given of what the network program has attached: open taps, or their names."""

from __future__ import annotations

from contextlib import closing

import pytest

from kata_runtime.network.plan import TCFILTER
from kata_runtime.resource import network
from network_program import ETH0, USER, NetworkProgram


@pytest.mark.parametrize("named", [False, True])
async def test_a_tap_has_its_queue_or_its_name(named: bool) -> None:
    with closing(NetworkProgram(ETH0)) as broker:
        found = await network.attach(broker, TCFILTER, named=named)  # type: ignore[arg-type]
    try:
        (tap,) = found.taps
        assert (tap.name, tap.mac, tap.mtu) == ("tap0_kata", ETH0.mac, ETH0.mtu)
        assert len(tap.fds) == (0 if named else 1)
    finally:
        found.close()
    assert broker.asked["named"] is named
    assert broker.asked["owner"] == (USER if named else 0)
