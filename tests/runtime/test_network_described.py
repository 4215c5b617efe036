"""A network that a file describes: what is taken, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.errors import UnsupportedError
from kata_runtime.network import described
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.guest import describe
from kata_runtime.resource import network

MAC = "02:00:00:00:00:07"


def device(**changes: Any) -> dict[str, Any]:
    info = {
        "interface": {"ip_addresses": ["10.1.0.2/24", "fd01::2/64"], "mtu": 1400, "flags": 0x80},
        "routes": [
            {"gateway": "10.1.0.1"},
            {"dest": "::/0", "gateway": "fd01::1", "mtu": 1300},
            {"dest": "10.7.0.0/16", "source": "10.1.0.2", "scope": 253},
        ],
        "neighbors": [{"ip_address": "10.1.0.1/32", "hardware_addr": "02:00:00:00:00:01"}],
    }
    tap = {"type": "host-tap", "tap_name": "tap7", "queue_num": 2, "queue_size": 256}
    return {"name": "eth0", "guest_mac": MAC, "device": tap, "network_info": info, **changes}


def parse(*devices: dict[str, Any], **more: Any) -> described.Described:
    return described.parse("/dans/one.json", json.dumps({"devices": devices, **more}).encode())


def test_what_the_guest_gets() -> None:
    found = parse(device())
    (attachment,) = found.plan.attachments
    assert (attachment.tap, attachment.model, found.queues) == ("tap7", "direct", (2,))
    guest = describe(found.plan)
    (interface,) = guest.interfaces
    assert (interface.name, interface.hwAddr, interface.mtu, interface.raw_flags) == ("eth0", MAC, 1400, 0x80)
    addresses = [(entry.address, entry.mask) for entry in interface.IPAddresses]
    assert addresses == [("10.1.0.2", "24"), ("fd01::2", "64")]
    routes = [(r.dest, r.gateway, r.source, r.family, r.scope, r.mtu) for r in guest.routes.Routes]
    assert routes == [
        ("10.7.0.0/16", "", "10.1.0.2", 0, 253, 0),
        ("", "10.1.0.1", "", 0, 0, 0),
        ("", "fd01::1", "", 1, 0, 1300),
    ]
    (neighbour,) = guest.neighbours.ARPNeighbors
    told = (neighbour.toIPAddress.address, neighbour.lladdr, neighbour.device, neighbour.state)
    assert told == ("10.1.0.1", "02:00:00:00:00:01", "eth0", 0x80)


def test_defaults() -> None:
    short = device(
        device={"type": "host-tap", "tap_name": "tap7"}, network_info={"interface": {"ip_addresses": []}}
    )
    del short["guest_mac"]
    first, second = parse(short), parse(short)
    link = first.plan.attachments[0].link
    assert (link.mtu, first.queues, first.plan.routes) == (1500, (0,), ())
    assert link.mac.startswith("02:")
    assert link.mac != second.plan.attachments[0].link.mac


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ({"device": {"type": "vhost-user", "path": "/run/vhost.sock"}}, "devices.0.device.type"),
        ({"device": {"type": "vfio", "pci_device_id": "0000:01:00.0"}}, "devices.0.device.type"),
        ({"device": {"type": "host-tap", "tap_name": "../tap"}}, "devices.0.device.tap_name"),
        ({"device": {"type": "host-tap", "tap_name": "tap%d"}}, "devices.0.device.tap_name"),
        ({"device": {"type": "host-tap", "tap_name": "t", "queue_size": 128}}, "devices.0.device.queue_size"),
        ({"device": {"type": "host-tap", "tap_name": "t", "queue_num": 65}}, "devices.0.device.queue_num"),
        ({"guest_mac": "01:00:00:00:00:01"}, "devices.0.guest_mac"),
        ({"network_info": {"interface": {"ip_addresses": ["10.1.0.300/24"]}}}, "interface.ip_addresses.0"),
        ({"network_info": {"interface": {"ip_addresses": [], "mtu": 67}}}, "interface.mtu"),
        ({"network_info": {"interface": {"ip_addresses": []}, "rules": []}}, "network_info.rules"),
    ],
)
def test_what_cannot_be_honoured_is_named(what: dict[str, Any], named: str) -> None:
    with pytest.raises(NetworkError, match=r"cannot take the network of /dans/one\.json") as caught:
        parse(device(**what))
    assert named in str(caught.value)
    assert '"host-tap"' in str(caught.value)


def test_other_namespaces_and_nothing_are_refused() -> None:
    for wrong in ({"netns": "/run/netns/x"}, {"more": 1}):
        with pytest.raises(NetworkError, match=next(iter(wrong))):
            parse(device(), **wrong)
    for data in (b"", b"[]", b'{"devices": []}', b"\xff"):
        with pytest.raises(NetworkError, match="cannot take the network"):
            described.parse("/dans/one.json", data)


def test_two_devices_of_one_name() -> None:
    with pytest.raises(NetworkError, match="two devices have one name"):
        parse(device(), device(guest_mac="02:00:00:00:00:08"))
    with pytest.raises(NetworkError, match="two devices have one guest_mac"):
        parse(device(), device(name="eth1"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "dans"
    directory.mkdir(mode=0o700)
    path = directory / "one.json"
    path.write_text(json.dumps({"devices": [device()]}))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("place", [".", "one.json"])
def test_a_file_that_others_can_write_is_refused(file: Path, place: str) -> None:
    assert described.read(str(file)).queues == (2,)
    (file.parent / place).chmod(0o777)
    with pytest.raises(NetworkError, match="others than root can write it"):
        described.read(str(file))


def test_a_link_is_not_followed(file: Path) -> None:
    (file.parent / "two.json").symlink_to(file)
    with pytest.raises(NetworkError, match="cannot read the network"):
        described.read(str(file.parent / "two.json"))


# -- attaching ---------------------------------------------------------------------------------------------


class Broker:
    """Opens what it has. Of a namespace, nothing may be asked."""

    def __init__(self, *taps: str) -> None:
        self.taps = taps
        self.asked: list[tuple[str, int]] = []

    async def open_tap(self, tap: str, queues: int) -> list[int]:
        self.asked.append((tap, queues))
        if tap not in self.taps:
            raise RequestFailedError(f"there is no tap {tap} on the host", 19)
        return []


def attach(broker: Any, file: Path, **more: Any) -> network.PodNetwork:
    return asyncio.run(network.attach(broker, "tcfilter", described=str(file), queues=3, **more))


def test_the_machine_gets_the_taps(file: Path) -> None:
    broker = Broker("tap7")
    found = attach(broker, file)
    assert [(tap.id, tap.name, tap.mac, tap.mtu) for tap in found.taps] == [("net0", "tap7", MAC, 1400)]
    assert broker.asked == [("tap7", 2)]
    assert describe(found.plan).interfaces[0].name == "eth0"


def test_the_configured_queues_where_none_are_given(file: Path) -> None:
    file.write_text(json.dumps({"devices": [device(device={"type": "host-tap", "tap_name": "tap7"})]}))
    broker = Broker("tap7")
    attach(broker, file)
    assert broker.asked == [("tap7", 3)]


def test_a_tap_that_is_not_there(file: Path) -> None:
    with pytest.raises(UnsupportedError, match="there is no tap tap7 on the host"):
        attach(Broker(), file)


def test_a_machine_that_takes_no_taps(file: Path) -> None:
    for how in ({"named": True}, {"hypervisor": "solo5-spt"}):
        with pytest.raises(UnsupportedError, match="takes no taps of the host"):
            attach(Broker("tap7"), file, **how)
    with pytest.raises(UnsupportedError, match="or a unikernel"):
        network.refuse_described(str(file))
    network.refuse_described(str(file.parent / "two.json"))


def test_whether_it_is_known(file: Path) -> None:
    async def state() -> tuple[list[str], bool]:
        return [], False

    broker: Any = SimpleNamespace(network_state=state)
    assert network.described_at(file.parent, "one") == str(file)
    assert asyncio.run(network.is_known(broker, str(file)))
    assert not asyncio.run(network.is_known(broker, network.described_at(file.parent, "two")))
    assert not asyncio.run(network.is_known(broker, network.described_at(None, "one")))
