"""Disks that are plugged into a running QEMU: what its monitor is asked, and what is left when it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_qemu import FakeHost, FakeQemu, settle
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor import vhost_vsock
from kata_hypervisor.contract import Disk, VmSpec
from kata_hypervisor.errors import HypervisorError, NotSupportedError
from kata_hypervisor.qemu import qmp_control
from kata_hypervisor.qemu.driver import Qemu
from kata_hypervisor.qemu.plugging import device, ports
from kata_runtime.broker.monitor import CommandFilter
from machines import start

DISK = Disk("device_1", Path("/dev/block/7:1"), read_only=True)
GONE = b'{"event": "DEVICE_DELETED", "data": {"device": "disk-0", "path": "/x"}, "timestamp": {}}\n'
PLUGGED = ["add-fd", "blockdev-add", "remove-fd", "device_add"]


class Machine:
    """A machine that runs, in a QEMU that answers."""

    def __init__(self, directory: Path, **qemu: Any) -> None:
        self.host = FakeHost(qemu=FakeQemu(**qemu), virtiofsd=settle)
        self.spec = VmSpec(
            sandbox_id="pod",
            directory=directory,
            vcpus=1,
            memory_mib=128,
            kernel=directory / "kernel",
            spare_disks=2,
        )
        self.spec.kernel.write_bytes(b"")

    async def start(self, **settings: Any) -> Qemu:
        table = QemuHypervisor(kernel=self.spec.kernel, accelerator="tcg", path=Path("/bin/true"), **settings)
        self.driver = Qemu(table, self.host, start_budget=20.0, stop_budget=20.0)
        await start(self.driver, self.spec)
        return self.driver

    @property
    def asked(self) -> list[str]:
        """What its monitor was asked since it runs."""
        commands = self.host.children["qemu"].commands
        return commands[commands.index("cont") + 1 :]

    def arguments(self, command: str) -> dict[str, Any]:
        child = self.host.children["qemu"]
        return child.arguments[child.commands.index(command)]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Makes machines, and ends them."""
    monkeypatch.setattr(vhost_vsock, "open_device", lambda: None)
    monkeypatch.setattr(qmp_control, "inherited_filters", lambda: 0)
    made: list[Machine] = []

    def one(**qemu: Any) -> Machine:
        made.append(Machine(tmp_path, **qemu))
        return made[-1]

    yield one
    for machine in made:
        await machine.driver.stop()
        await machine.host.aclose()
    await asyncio.sleep(0)


async def test_a_disk_is_a_descriptor_and_a_device_on_a_port(make: Any) -> None:
    machine = make(events={"device_del": GONE})
    driver = await machine.start(block_device_cache_direct=True)
    await driver.add_disk(DISK)
    assert machine.host.given == [(DISK.path, False)]
    assert machine.asked == PLUGGED
    assert machine.arguments("blockdev-add") == {
        "driver": "raw",
        "node-name": "disk-0",
        "read-only": True,
        "cache": {"direct": True, "no-flush": False},
        "file": {"driver": "host_device", "filename": "/dev/fdset/1", "locking": "off"},
    }
    assert machine.arguments("device_add") == {
        "driver": "virtio-blk-pci",
        "bus": "slot-0",
        "id": "disk-0",
        "drive": "disk-0",
        "serial": "device_1",
        "num-queues": 1,
        "queue-size": 128,
    }
    assert driver.disk_node("device_1") == "/dev/disk/by-id/virtio-device_1"
    await driver.remove_disk("device_1")
    assert machine.asked == [*PLUGGED, "device_del", "blockdev-del"]


async def test_what_is_asked_is_what_the_broker_passes(make: Any) -> None:
    machine = make(events={"device_del": GONE})
    most = {
        "enable_iothreads": True,
        "indep_iothreads": 8,
        "num_queues": 256,
        "queue_size": 1024,
        "block_device_cache_noflush": True,
        "block_device_logical_sector_size": 512,
        "block_device_physical_sector_size": 65536,
    }
    for board, keys in (("q35", {}), ("pc", {}), ("q35", most), ("q35", {"enable_iothreads": True})):
        driver = await machine.start(machine_type=board, **keys)
        await driver.add_disk(DISK)
        await driver.remove_disk("device_1")
        rules = CommandFilter(driver.info.monitor_commands)
        child = machine.host.children["qemu"]
        for command, arguments in zip(child.commands, child.arguments, strict=True):
            if command != "qmp_capabilities":
                assert rules._rewrite({"execute": command, "arguments": arguments})
        await driver.stop()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {}),
        ({"enable_iothreads": True}, {"iothread": "block-0"}),
        ({"enable_iothreads": True, "indep_iothreads": 2}, {"iothread": "block-2"}),
        (
            {"block_device_logical_sector_size": 4096},
            {"logical_block_size": 4096, "physical_block_size": 4096},
        ),
        ({"block_device_physical_sector_size": 4096}, {"physical_block_size": 4096}),
    ],
)
def test_what_a_disk_is_like(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    described = device(QemuHypervisor(kernel=Path("/k"), **keys), DISK, 3)
    plain = ("driver", "bus", "id", "drive", "serial", "num-queues", "queue-size")
    assert {name: found for name, found in described.items() if name not in plain} == expected


async def test_ports_are_free_again_and_there_are_no_more(make: Any) -> None:
    machine = make(events={"device_del": GONE})
    driver = await machine.start()
    await driver.add_disk(DISK)
    await driver.add_disk(replace(DISK, id="device_2"))
    with pytest.raises(HypervisorError, match="the 2 that the machine was made to take are in use"):
        await driver.add_disk(replace(DISK, id="device_3"))
    await driver.remove_disk("device_1")
    await driver.add_disk(replace(DISK, id="device_3"))
    assert machine.host.children["qemu"].arguments[-1]["bus"] == "slot-0"


async def test_what_was_not_plugged_in_is_not_taken_out(make: Any) -> None:
    driver = await make().start()
    for name in ("device_1", ""):
        with pytest.raises(HypervisorError, match="it was not plugged in"):
            await driver.remove_disk(name)


async def test_a_file_is_no_disk_that_comes_later(make: Any) -> None:
    driver = await make().start()
    with pytest.raises(NotSupportedError, match="takes only a block device of the host later"):
        await driver.add_disk(replace(DISK, path=Path("/etc/shadow")))


@pytest.mark.parametrize("refused", ["add-fd", "blockdev-add", "device_add"])
async def test_nothing_is_left_of_a_disk_that_is_refused(make: Any, refused: str) -> None:
    machine = make(errors={refused: "no"})
    driver = await machine.start()
    with pytest.raises(HypervisorError, match=f'cannot plug the disk device_1.*"{refused}": no'):
        await driver.add_disk(DISK)
    assert ("blockdev-del" in machine.asked) == (refused == "device_add")
    assert ("remove-fd" in machine.asked) == (refused != "add-fd")
    assert driver._disks._places == ["", ""]


@pytest.mark.parametrize(
    ("refused", "left"),
    [("blockdev-add", "remove-fd"), ("device_add", "blockdev-del")],
)
async def test_what_cannot_be_taken_back_is_told(
    make: Any, refused: str, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller learns why the disk was refused, the log what is left of it."""
    machine = make(errors={refused: "no", left: "neither"})
    driver = await machine.start()
    with pytest.raises(HypervisorError, match=f'"{refused}": no'):
        await driver.add_disk(DISK)
    (record,) = [record for record in caplog.records if "is left in QEMU" in record.message]
    assert f'"{left}": neither' in record.message


def test_a_board_has_a_port_for_each() -> None:
    settings: dict[str, Any] = {"kernel": Path("/kernel")}
    table = QemuHypervisor(**settings)
    made = list(ports(table, 8))
    assert made.count("-device") == 8
    assert made[1] == "pcie-root-port,id=slot-0,chassis=1,addr=1e.0,multifunction=on"
    assert made[-1] == "pcie-root-port,id=slot-7,chassis=8,addr=1e.7"
    assert list(ports(table.model_copy(update={"machine_type": "pc"}), 8)) == []
    with pytest.raises(HypervisorError, match="8 later disks, 9 were asked for"):
        list(ports(table, 9))
