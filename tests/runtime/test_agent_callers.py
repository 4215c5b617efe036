"""Who can call a guest's agent beside the runtime, and where a warning says so."""

from __future__ import annotations

import socket

import pytest

from kata_agent.constants import FEATURE_PORT_FORWARD, FEATURE_STREAM_IO
from kata_agent.transport import GuestTransport
from kata_agent.transports import HybridVsockTransport, VsockTransport
from kata_runtime.pod.linux_boot import open_to_everybody


async def dial(port: int) -> socket.socket:
    raise AssertionError(f"port {port} was called")


VSOCK, HYBRID = VsockTransport(dial, "guest 3"), HybridVsockTransport(dial, "/run/pod/vsock")


@pytest.mark.parametrize(
    ("transport", "features", "warned"),
    [
        (VSOCK, [FEATURE_STREAM_IO, FEATURE_PORT_FORWARD], False),
        (VSOCK, [], True),
        (VSOCK, ["handles-device-cgroup"], True),
        (HYBRID, [], False),
    ],
)
def test_an_agent_of_others_on_the_kernels_vsock_is_everybodys(
    transport: GuestTransport, features: list[str], warned: bool
) -> None:
    """The kernel asks nobody who connects; only this project's agent looks at the port of who calls."""
    sentence = open_to_everybody(features, transport)
    assert ("each user of this host can call the guest's agent" in sentence) == warned
