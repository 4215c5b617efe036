"""Plugging: what the driver does with its slots, and with guests that respond, or do not."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kata_hypervisor.contract import Disk, Tap
from kata_hypervisor.dragonball import hotplug
from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.hotplug import Hotplug
from kata_hypervisor.dragonball.slots import PRESENT, Slot, States
from kata_hypervisor.dragonball.virtio import vhost
from kata_hypervisor.dragonball.virtio.block import Block
from kata_hypervisor.dragonball.virtio.device import VERSION_1, DeviceContext
from kata_hypervisor.dragonball.virtio.mmio import Register, Registers
from kata_hypervisor.dragonball.virtio.network import NO_TAP, Network
from kata_hypervisor.errors import HypervisorError, NotSupportedError
from local_host import LocalHost
from virtqueue_driver import VirtqueueDriver


class Guest:
    """In a machine's place: slots, and a kernel that looks at them while it is `attentive`."""

    def __init__(self) -> None:
        self.attentive = True
        self.control = Control("devices")
        self.processors = SimpleNamespace(outcome=None)
        self.states = States(self._look)
        self.slots: list[Slot[Any]] = []
        self.looks = 0
        self._notify_fds: list[int] = []
        self._memory = VirtqueueDriver().memory
        self._loop = asyncio.get_running_loop()

    def add_slot(self, device: Any) -> Slot[Any]:
        """See Machine."""
        registers = Registers(device, self._interrupt, self.control.call)
        notify_fds = [os.eventfd(0) for _ in set(device.notify_groups)]
        self._notify_fds += notify_fds
        device.connect(DeviceContext(self._memory, notify_fds, -1, registers))
        self.slots.append(Slot(self.states.add(), device, registers))
        return self.slots[-1]

    def _look(self) -> None:
        self.looks += 1
        if self.attentive:
            self._loop.call_soon(self._probe)

    def _probe(self) -> None:
        for slot in self.slots:
            if self.states.read_port(hotplug_port(slot), 1) == PRESENT and slot.fresh:
                drive(slot.registers)

    def _interrupt(self) -> None:
        if self.attentive:
            for slot in self.slots:
                slot.registers.read_memory(Register.CONFIGURATION, 4)

    def capacities(self) -> list[int]:
        """The sectors of each slot's disk."""
        return [struct.unpack("<Q", slot.device.configuration[:8])[0] for slot in self.slots]

    def close(self) -> None:
        """End the devices."""
        for slot in self.slots:
            slot.device.close()
        self.control.close()
        for kick in self._notify_fds:
            os.close(kick)


def hotplug_port(slot: Slot[Any]) -> int:
    """The port of a slot's state."""
    return 0x610 + slot.number


def drive(registers: Registers) -> None:
    """What a driver does until it is ready."""

    def write(offset: int, value: int) -> None:
        registers.write_memory(offset, value.to_bytes(4, "little"))

    write(Register.STATUS, 1)
    write(Register.STATUS, 3)
    for page in (0, 1):
        write(Register.DEVICE_FEATURES_PAGE, page)
        write(Register.DRIVER_FEATURES_PAGE, page)
        offered = int.from_bytes(registers.read_memory(Register.DEVICE_FEATURES, 4), "little")
        write(Register.DRIVER_FEATURES, offered)
    write(Register.STATUS, 11)
    write(Register.STATUS, 15)


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    """A guest; leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    guest = Guest()
    yield guest
    guest.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def plugs(guest: Guest) -> Hotplug:
    """Two drives of the guest."""
    return Hotplug(guest, LocalHost(), [Block(), Block()])  # type: ignore[arg-type]


def disk(directory: Path, name: str, sectors: int, *, read_only: bool = False) -> Disk:
    path = directory / name
    path.write_bytes(bytes(512 * sectors))
    return Disk(name, path, read_only=read_only)


async def test_disks_come_and_go(guest: Guest, plugs: Hotplug, tmp_path: Path) -> None:
    assert [guest.states.read_port(0x610 + number, 1) for number in (0, 1)] == [0, 0]
    await plugs.add_disk(disk(tmp_path, "a", 1))
    await plugs.add_disk(disk(tmp_path, "b", 2, read_only=True))
    assert guest.capacities() == [1, 2]
    with pytest.raises(HypervisorError, match="plug the disk c: none of the 2 slots"):
        await plugs.add_disk(disk(tmp_path, "c", 3))
    await plugs.remove_disk("b")
    assert guest.capacities() == [1, 0]
    with pytest.raises(HypervisorError, match="take out the disk b: it was not plugged in"):
        await plugs.remove_disk("b")
    # The driver in that slot has a read-only drive.
    with pytest.raises(HypervisorError, match="plug the disk c: none of the 2 slots"):
        await plugs.add_disk(disk(tmp_path, "c", 3))
    with pytest.raises(HypervisorError, match="plug the disk a: another one has this id"):
        await plugs.add_disk(disk(tmp_path, "a", 3, read_only=True))
    looks = guest.looks
    await plugs.add_disk(disk(tmp_path, "c", 3, read_only=True))
    assert guest.capacities() == [1, 3]
    assert guest.looks == looks


async def test_a_guest_that_takes_no_notice(
    guest: Guest, plugs: Hotplug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalHost, "patience", 0.05)
    monkeypatch.setattr(hotplug, "TURNS", 2)
    guest.attentive = False
    with pytest.raises(HypervisorError, match=r"plug the disk a: the guest did not respond within 0\.05 s"):
        await plugs.add_disk(disk(tmp_path, "a", 1))
    assert guest.looks > 1  # it was reminded
    assert guest.capacities() == [0, 0]
    assert guest.states.read_port(0x610, 1) == 0
    guest.attentive = True
    monkeypatch.setattr(LocalHost, "patience", 30.0)
    await plugs.add_disk(disk(tmp_path, "a", 1, read_only=True))
    guest.attentive = False
    monkeypatch.setattr(LocalHost, "patience", 0.05)
    with pytest.raises(HypervisorError, match="take out the disk a: the guest did not respond"):
        await plugs.remove_disk("a")
    assert guest.capacities() == [0, 0]  # it is gone all the same
    with pytest.raises(HypervisorError, match="take out the disk a: it was not plugged in"):
        await plugs.remove_disk("a")
    guest.attentive = True
    await plugs.add_disk(disk(tmp_path, "b", 1, read_only=True))
    assert guest.capacities() == [0, 1]  # nobody knows what the guest thinks of the first slot


async def test_what_cannot_be_opened_leaves_the_slot_free(
    guest: Guest, plugs: Hotplug, tmp_path: Path
) -> None:
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            await plugs.add_disk(Disk("a", tmp_path / "none"))
    assert guest.looks == 0
    await plugs.add_disk(disk(tmp_path, "a", 1))


async def test_the_end_of_the_guest_ends_the_wait(guest: Guest, plugs: Hotplug, tmp_path: Path) -> None:
    guest.attentive = False
    async with anyio.create_task_group() as tasks:

        async def plug() -> None:
            with pytest.raises(HypervisorError, match="plug the disk a: the guest has ended: it powered off"):
                await plugs.add_disk(disk(tmp_path, "a", 1))

        tasks.start_soon(plug)
        while not guest.looks:
            await anyio.lowlevel.checkpoint()
        guest.processors.outcome = "it powered off"


async def test_who_gives_up_gets_the_slot_emptied(guest: Guest, plugs: Hotplug, tmp_path: Path) -> None:
    guest.attentive = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(plugs.add_disk, disk(tmp_path, "a", 1))
        while not guest.looks:
            await anyio.lowlevel.checkpoint()
        assert guest.capacities() == [1, 0]
        tasks.cancel_scope.cancel()
    assert guest.capacities() == [0, 0]


async def test_a_tap_without_a_slot_is_closed(guest: Guest, plugs: Hotplug) -> None:
    for fds, error in ((1, HypervisorError), (2, NotSupportedError)):
        taps = tuple(os.memfd_create("tap") for _ in range(fds))
        with pytest.raises(error, match=r"slots|only one"):
            await plugs.add_tap(Tap("net0", "tap0", "02:00:00:00:00:01", fds=taps))
        for descriptor in taps:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)


async def test_a_tap_of_a_larger_mtu_than_its_slot_is_closed(guest: Guest, plugs: Hotplug) -> None:
    large = replace(tap("02:00:00:00:00:01"), mtu=9001)
    with pytest.raises(NotSupportedError, match="its MTU is 9001"):
        await plugs.add_tap(large)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(large.fds[0])


def tap(mac: str) -> Tap:
    return Tap("net0", "tap0", mac, fds=(os.memfd_create("tap"),))


class Kernel:
    """vhost, in place of the kernel's. asked: the requests. refuses: whether it takes no tap."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.refuses = False

    def ioctl(self, descriptor: int, request: int, argument: Any = 0) -> int:
        """See fcntl.ioctl."""
        self.asked.append(request)
        if request == vhost.VHOST_GET_FEATURES:
            argument.value = VERSION_1
        if request == vhost.VHOST_NET_SET_BACKEND and argument.fd >= 0 and self.refuses:
            raise OSError(77, "File descriptor in bad state")
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Takes the requests to vhost."""
    kernel = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    return kernel


async def test_network_devices_come_and_go(guest: Guest, kernel: Kernel) -> None:
    nic = Network(NO_TAP, os.memfd_create("vhost"))
    plugs = Hotplug(guest, LocalHost(), [nic])  # type: ignore[arg-type]
    await plugs.add_tap(tap("02:00:00:00:00:01"))
    assert nic.configuration[:8] == b"\2\0\0\0\0\1\1\0"
    kernel.asked.clear()
    await plugs.remove_tap("net0")
    assert nic.configuration[:8] == b"\2\0\0\0\0\1\0\0"
    assert kernel.asked == [vhost.VHOST_NET_SET_BACKEND] * 2
    with pytest.raises(HypervisorError, match="plug the network device net0: none of the 1 slots"):
        await plugs.add_tap(tap("02:00:00:00:00:02"))  # the guest's driver knows the address
    kernel.asked.clear()
    await plugs.add_tap(tap("02:00:00:00:00:01"))
    assert kernel.asked == [vhost.VHOST_NET_SET_BACKEND] * 2


async def test_a_tap_that_the_kernel_refuses(guest: Guest, kernel: Kernel) -> None:
    plugs = Hotplug(guest, LocalHost(), [Network(NO_TAP, os.memfd_create("vhost"))])  # type: ignore[arg-type]
    await plugs.add_tap(tap("02:00:00:00:00:01"))
    await plugs.remove_tap("net0")
    kernel.refuses = True
    with pytest.raises(HypervisorError, match="net0: the kernel refuses the tap: File desc"):
        await plugs.add_tap(tap("02:00:00:00:00:01"))
    kernel.refuses = False
    await plugs.add_tap(tap("02:00:00:00:00:01"))
