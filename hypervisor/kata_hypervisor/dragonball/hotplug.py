"""Plugging disks and network devices into the running machine, and taking them out again."""

from __future__ import annotations

import abc
import itertools
import os
from collections.abc import Callable, Sequence

import anyio

from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import Disk, Hypervisor, Tap
from kata_hypervisor.dragonball.host_files import tap_queue
from kata_hypervisor.dragonball.machine import Machine
from kata_hypervisor.dragonball.slots import D, Slot
from kata_hypervisor.dragonball.virtio.block import Block, Medium
from kata_hypervisor.dragonball.virtio.network import SLOT_MTU, Network
from kata_hypervisor.errors import HypervisorError, NotSupportedError
from kata_hypervisor.host import Host

PAUSE, TURNS = 0.005, 200
"""Seconds between two looks at whether it has, and looks between two reminders."""


class Hotplug:
    """The slots of one machine, which are made with it; its other methods are for when it runs.

    spares: empty devices, which belong to the machine from here on. Raises as `Machine.add_device`.
    """

    def __init__(self, machine: Machine, host: Host, spares: Sequence[Block | Network]) -> None:
        self._machine = machine
        self._host = host
        self._drives = [machine.add_slot(spare) for spare in spares if isinstance(spare, Block)]
        self._nics = [machine.add_slot(spare) for spare in spares if isinstance(spare, Network)]

    async def add_disk(self, disk: Disk) -> None:
        """See the contract."""
        what = f"plug the disk {disk.id}"
        features = Medium.features_of(read_only=disk.read_only)
        slot = _take(self._drives, disk.id, what, lambda drive: drive.features == features)
        try:
            descriptor, size = await self._host.open_disk(disk.path, write=not disk.read_only)
            slot.device.insert(Medium(descriptor, size, read_only=disk.read_only, identity=disk.id.encode()))
            await self._show(slot, what)
        except BaseException:
            await self._vacate(slot)
            raise

    async def remove_disk(self, name: str) -> None:
        """See the contract."""
        await self._unplug(_held(self._drives, name, "disk"), f"take out the disk {name}")

    async def add_tap(self, tap: Tap) -> None:
        """See the contract."""
        what = f"plug the network device {tap.id}"
        try:
            queue, mac = tap_queue(tap)
            if tap.mtu > SLOT_MTU:
                raise NotSupportedError(
                    f"cannot {what}: its MTU is {tap.mtu}, and the slots that the machine was made with take "
                    f"at most {SLOT_MTU}"
                )
            slot = _take(self._nics, tap.id, what, lambda nic: nic.mac == mac)
        except BaseException:
            _close(tap)
            raise
        try:
            try:
                slot.device.insert(queue, mac)
            except OSError as error:
                raise HypervisorError(
                    f"cannot {what}: the kernel refuses the tap: {error.strerror}"
                ) from error
            await self._show(slot, what)
        except BaseException:
            await self._vacate(slot)
            raise

    async def remove_tap(self, name: str) -> None:
        """See the contract."""
        await self._unplug(_held(self._nics, name, "network device"), f"take out the network device {name}")

    async def _show(self, slot: Slot[D], what: str) -> None:
        """Let the guest find what was put into a slot."""
        if slot.driven:
            slot.registers.configuration_changed()
            await self._until(lambda: slot.registers.settled, what)
        else:
            self._machine.states.show(slot.number)
            # Announced again and again: a kernel that is still booting misses it.
            await self._until(lambda: slot.driven, what, self._machine.states.announce)

    async def _unplug(self, slot: Slot[D], what: str) -> None:
        await self._vacate(slot)
        if slot.driven:
            slot.registers.configuration_changed()
            await self._until(lambda: slot.registers.settled, what)

    async def _vacate(self, slot: Slot[D]) -> None:
        """Empty a slot, whatever the guest thinks of it."""
        await finish(self._empty(slot))

    async def _empty(self, slot: Slot[D]) -> None:
        if self._machine.processors.outcome is None:  # else it is emptied by the machine's end
            await self._machine.control.run(slot.device.eject)
        if not slot.driven:
            self._machine.states.hide(slot.number)
        slot.holder = None

    async def _until(
        self, noticed: Callable[[], bool], what: str, remind: Callable[[], object] = lambda: None
    ) -> None:
        """Wait for the guest, which has nobody to wake us."""
        with anyio.move_on_after(self._host.patience):
            for turn in itertools.count(1):
                if noticed():
                    return
                if (reason := self._machine.processors.outcome) is not None:
                    raise HypervisorError(f"cannot {what}: the guest has ended: {reason}")
                await anyio.sleep(PAUSE)
                if turn % TURNS == 0:
                    remind()
        raise HypervisorError(
            f"cannot {what}: the guest did not respond within {self._host.patience:g} s; check that its "
            "kernel has virtio-mmio and ACPI's generic event device, and that it is not paused"
        )


class HotplugHypervisor(Hypervisor):
    """A hypervisor with slots: the contract's methods for them."""

    @abc.abstractmethod
    def _slots(self, purpose: str) -> Hotplug:
        """The running machine's slots. Raises HypervisorError where it does not run, with the purpose."""

    async def add_disk(self, disk: Disk) -> None:
        """See the contract."""
        await self._slots(f"plug the disk {disk.id} into").add_disk(disk)

    async def remove_disk(self, name: str) -> None:
        """See the contract."""
        await self._slots(f"take the disk {name} out of").remove_disk(name)

    async def add_tap(self, tap: Tap) -> None:
        """See the contract."""
        try:
            slots = self._slots(f"plug the network device {tap.id} into")
        except HypervisorError:
            _close(tap)
            raise
        await slots.add_tap(tap)

    async def remove_tap(self, name: str) -> None:
        """See the contract."""
        await self._slots(f"take the network device {name} out of").remove_tap(name)


def _close(tap: Tap) -> None:
    for descriptor in tap.fds:
        os.close(descriptor)


def _take(slots: Sequence[Slot[D]], name: str, what: str, suits: Callable[[D], bool]) -> Slot[D]:
    """Reserve a free slot: one with a driver that knows such a device, or one that no driver has seen."""
    if any(slot.holder == name for slot in slots):
        raise HypervisorError(f"cannot {what}: another one has this id")
    free = [slot for slot in slots if slot.holder is None]
    used = [slot for slot in free if slot.driven and slot.registers.settled and suits(slot.device)]
    fit = used + [slot for slot in free if slot.fresh]
    if not fit:
        raise HypervisorError(
            f"cannot {what}: none of the {len(slots)} slots that the machine was made with can take it"
        )
    fit[0].holder = name
    return fit[0]


def _held(slots: Sequence[Slot[D]], name: str, kind: str) -> Slot[D]:
    for slot in slots:
        if slot.holder == name:
            return slot
    raise HypervisorError(f"cannot take out the {kind} {name}: it was not plugged in")
