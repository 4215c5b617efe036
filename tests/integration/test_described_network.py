"""A pod whose network a file in dan_conf describes: a tap that the operator has made on the host."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from network_bed import ip
from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

NUMBER = 1 + secrets.randbelow(250)
TAP = f"kt-dan{NUMBER}"
GATEWAYS = (f"10.236.{NUMBER}.1", f"fd00:eda:{NUMBER}::1")
ADDRESSES = (f"10.236.{NUMBER}.2/24", f"fd00:eda:{NUMBER}::2/64")
MAC = "02:00:00:00:00:07"


@pytest.fixture
def tap(node: Node) -> Iterator[str]:
    ip("tuntap", "add", TAP, "mode", "tap")
    try:
        for gateway, prefix in zip(GATEWAYS, (24, 64), strict=True):
            ip("address", "add", f"{gateway}/{prefix}", "dev", TAP, *(["nodad"] if prefix == 64 else []))
        ip("link", "set", TAP, "up")
        yield TAP
    finally:
        ip("link", "delete", TAP)


def describe(node: Node, container: str, **device: Any) -> tuple[str, str]:
    """Describe a container's network; returns ctr's options for a configuration that looks there."""
    directory = Path(node.root) / "dans"
    directory.mkdir(mode=0o700, exist_ok=True)
    info = {
        "interface": {"ip_addresses": ADDRESSES, "mtu": 1400},
        "routes": [{"gateway": gateway} for gateway in GATEWAYS],
    }
    one = {"name": "eth0", "guest_mac": MAC, "device": device, "network_info": info}
    file = directory / f"{container}.json"
    file.write_text(json.dumps({"devices": [one]}))
    file.chmod(0o600)
    return "--runtime-config-path", str(node.configuration("described", dan_conf=str(directory)))


def test_a_pod_on_the_operators_tap(node: Node, tap: str) -> None:
    container = node.new_id()
    options = describe(node, container, type="host-tap", tap_name=tap)
    pings = "; ".join(f"ping -c 1 -W 10 {gateway}" for gateway in GATEWAYS)
    result = node.run("sh", "-c", f"ip address show eth0; {pings}", container=container, options=options)
    assert result.returncode == 0, result
    assert MAC in result.stdout
    assert "mtu 1400" in result.stdout
    for address in ADDRESSES:
        assert f" {address} " in result.stdout
    assert result.stdout.count(" 0% packet loss") == 2
    assert not [line for line in node.log().splitlines() if "network differs" in line]
    assert TAP in ip("link", "show", TAP)


def test_what_is_not_attached_is_refused(node: Node) -> None:
    for device, named in (
        ({"type": "vhost-user", "path": "/run/vhost.sock"}, "devices.0.device.type"),
        ({"type": "host-tap", "tap_name": "kt-nowhere"}, "there is no tap kt-nowhere on the host"),
        ({"type": "host-tap", "tap_name": "lo"}, "cannot open the tap lo"),
    ):
        container = node.new_id()
        result = node.run("true", container=container, options=describe(node, container, **device))
        assert result.returncode != 0
        assert named in result.stderr
