"""Block devices of the host in a pod: plugged in once, for as long as a container has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kata_hypervisor.contract import Capabilities, Disk
from kata_hypervisor.errors import HypervisorError
from kata_runtime.block_nodes import BlockNode
from kata_runtime.broker.shared_source import SharedSource
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.pod.linux_guest import LinuxGuest
from kata_runtime.resource.block_devices import BlockDevices
from kata_runtime.resource.shares import Shares
from kata_runtime.stdio.files import StdioFiles, StdioPaths
from pod_bed import fixed_room, no_cpus

SPEC: dict[str, Any] = {"root": {"path": "/r"}, "process": {"args": ["sh"], "cwd": "/"}}


class Machine:
    """A machine that takes disks. full: it takes no more."""

    def __init__(self, *, device_hotplug: bool = True) -> None:
        self.capabilities = Capabilities(device_hotplug=device_hotplug)
        self.disks: list[Disk] = []
        self.full = False
        self.stuck = False

    async def add_disk(self, disk: Disk) -> None:
        if self.full:
            raise HypervisorError(f"cannot plug the disk {disk.id}")
        self.disks.append(disk)

    async def remove_disk(self, name: str) -> None:
        if self.stuck:
            raise HypervisorError(f"cannot take out the disk {name}")
        self.disks = [disk for disk in self.disks if disk.id != name]

    def disk_node(self, name: str) -> str:
        return f"/dev/disk/by-id/virtio-{name}"

    @property
    def devices(self) -> list[tuple[str, bool]]:
        """What it has of the host, and whether it may write to it."""
        return [(str(disk.path), not disk.read_only) for disk in self.disks]


def guest_of(machine: Machine, agent: Any = None) -> LinuxGuest:
    configuration: Any = SimpleNamespace(
        hypervisor=SimpleNamespace(shares_files=True),
        runtime=SimpleNamespace(disable_guest_seccomp=False),
        agent=SimpleNamespace(health_check_request_timeout_ms=1000),
    )
    given: Any = machine
    return LinuxGuest(configuration, given, agent, streams=True, room=fixed_room(), cpus=no_cpus())


def container(name: str, *nodes: BlockNode) -> Container:
    return Container(name, "/bundle", SPEC, Process(name, "", StdioPaths(), {}), nodes=list(nodes))


def node(path: str = "/dev/data", device: str = "7:1", *, write: bool = True) -> BlockNode:
    return BlockNode(path, device, write=write)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def guest(machine: Machine) -> LinuxGuest:
    return guest_of(machine)


async def test_a_device_is_plugged_in_once_and_goes_with_its_last_container(
    machine: Machine, guest: LinuxGuest
) -> None:
    devices = BlockDevices()
    first = container("a", node(), node("/dev/again"))
    second = container("b", node("/dev/other"), node("/dev/more", "7:2", write=False))
    for one in (first, second):
        await devices.plug(one, guest)
    assert machine.devices == [("/dev/block/7:1", True), ("/dev/block/7:2", False)]
    assert {each.found_by for each in (*first.nodes, second.nodes[0])} == {
        f"/dev/disk/by-id/virtio-{machine.disks[0].id}"
    }
    await devices.unplug(first, guest)
    assert len(machine.devices) == 2
    for _ in range(2):
        await devices.unplug(second, guest)
    assert machine.devices == []
    await devices.plug(first, guest)
    assert machine.devices == [("/dev/block/7:1", True)]


async def test_who_reads_a_device_that_is_written_has_it_and_not_the_other_way_round(
    machine: Machine, guest: LinuxGuest
) -> None:
    devices = BlockDevices()
    await devices.plug(container("writer", node(device="7:1")), guest)
    await devices.plug(container("reader", node(device="7:1", write=False)), guest)
    await devices.plug(container("reader", node(device="7:2", write=False)), guest)
    with pytest.raises(UnsupportedError, match="the block device 7:2 is in the pod read-only already"):
        await devices.plug(container("writer", node(device="7:2")), guest)
    assert machine.devices == [("/dev/block/7:1", True), ("/dev/block/7:2", False)]


async def test_what_was_plugged_in_before_one_failed_is_taken_out(
    machine: Machine, guest: LinuxGuest
) -> None:
    devices = BlockDevices()
    await devices.plug(container("a", node(device="7:2", write=False)), guest)
    failing = container("b", node(device="7:1"), node("/dev/x", device="7:2"))
    with pytest.raises(UnsupportedError):
        await devices.plug(failing, guest)
    await devices.unplug(failing, guest)
    assert machine.devices == [("/dev/block/7:2", False)]
    machine.full = True
    refused = container("c", node(device="7:1"))
    with pytest.raises(HypervisorError, match="cannot plug the disk"):
        await devices.plug(refused, guest)
    assert refused.plugged == []
    machine.full = False
    await devices.plug(refused, guest)
    assert machine.devices == [("/dev/block/7:2", False), ("/dev/block/7:1", True)]


async def test_a_machine_that_takes_none_refuses_by_name() -> None:
    machine = Machine(device_hotplug=False)
    with pytest.raises(UnsupportedError, match="/dev/data is a block device of the host"):
        await BlockDevices().plug(container("a", node()), guest_of(machine))
    assert machine.devices == []


async def test_a_node_outside_of_dev_is_refused_before_anything_is_plugged_in(
    machine: Machine, guest: LinuxGuest
) -> None:
    with pytest.raises(InvalidRequestError, match="the node /data of a block device has to be below /dev"):
        await BlockDevices().plug(container("a", node(), node("/data", "7:2")), guest)
    assert machine.devices == []


async def test_a_mount_of_a_device_is_a_node_and_no_volume() -> None:
    async def share(source: str, **how: object) -> SharedSource:
        return SharedSource("", device="7:1", mode=0o660, user=5, group=6)

    async def nothing(*what: object, **how: object) -> None:
        pass

    broker: Any = SimpleNamespace(share=share, make_directory=nothing, bind=nothing)
    options = {"/dev/a": ["rbind", "ro"], "/dev/b": ["bind"]}
    mounts = [{"destination": path, "source": "/dev/sda", "options": how} for path, how in options.items()]
    rules = [{"allow": True, "type": "b", "major": 7, "minor": 1, "access": "rw"}]
    spec = SPEC | {"mounts": mounts, "linux": {"resources": {"devices": rules}}}
    given = Container("a", "/bundle", spec, Process("a", "", StdioPaths(), {}))
    assert await Shares(broker, "/shared").share(given, ()) == {}
    assert given.volumes == []
    assert [(each.path, each.numbers, each.write, each.mount) for each in given.nodes] == [
        ("/dev/a", (7, 1), False, 0),
        ("/dev/b", (7, 1), True, 1),
    ]
    assert {(each.mode, each.user, each.group) for each in given.nodes} == {(0o660, 5, 6)}


async def test_the_agent_is_told_which_disk_each_node_is(machine: Machine) -> None:
    asked: list[Any] = []

    async def create_container(request: Any) -> None:
        asked.append(request)

    guest = guest_of(machine, SimpleNamespace(create_container=create_container))
    given = container("a", node(), node("/dev/more", "7:2"))
    await BlockDevices().plug(given, guest)
    files = StdioFiles()
    await guest.create_container(given, {}, files)
    told = [(device.id, device.type, device.vm_path, device.container_path) for device in asked[0].devices]
    names = [machine.disk_node(disk.id) for disk in machine.disks]
    assert told == [("7:1", "blk", names[0], "/dev/data"), ("7:2", "blk", names[1], "/dev/more")]


async def test_an_update_that_repeats_a_devices_rule_changes_the_limits(machine: Machine) -> None:
    asked: list[Any] = []

    async def update_container(request: Any) -> None:
        asked.append(request)

    guest = guest_of(machine, SimpleNamespace(update_container=update_container))
    given = container("a", node())
    rules = [{"allow": True, "type": "b", "major": 7, "minor": 1, "access": "rwm"}]
    given.spec["linux"] = {"resources": {"devices": rules, "memory": {"limit": 64 << 20}}}
    await guest.update_container(given, {"devices": rules, "memory": {"limit": 32 << 20}})
    assert [request.resources.Memory.Limit for request in asked] == [32 << 20]
    assert [list(request.resources.Devices) for request in asked] == [[]]
    assert given.spec["linux"]["resources"]["devices"] == rules
    other = [{**rules[0], "minor": 2}]
    with pytest.raises(UnsupportedError, match="it is allowed the device b 7:2"):
        await guest.update_container(given, {"devices": other})
