"""Disks that are plugged into QEMU while its guest runs.

The broker opens the device, and its descriptor goes to QEMU with a command of the monitor: QEMU looks no path
up, and needs no permission. The guest finds the disk by its serial number.

A q35 board takes devices later on PCIe root ports only, one on each, which must be there from the start; a pc
board on its only bus. Sources: QEMU's qapi/block-core.json, qapi/misc.json, docs/pcie.txt.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import Disk
from kata_hypervisor.errors import HypervisorError, NotSupportedError
from kata_hypervisor.host import Host
from kata_hypervisor.qemu.command import block_threads, option, queues
from kata_hypervisor.qemu.info import BUS_OF_PC, MOST_LATER_DISKS, disk_name, slot
from kata_hypervisor.qemu.qmp import QmpClient, QmpError

_log = logging.getLogger(__name__)

_DEVICES = Path("/dev/block")
_SLOT = "1e"
"""Where the root ports are on the bus: the functions of one device, behind all others."""


def ports(table: QemuTable, count: int) -> Iterator[str]:
    """Arguments for the ports of disks that come later. Raises HypervisorError: there are not so many."""
    if count > MOST_LATER_DISKS:
        raise HypervisorError(
            f"qemu's machines are made for {MOST_LATER_DISKS} later disks, {count} were asked for"
        )
    if table.machine_type == "pc":
        return
    for number in range(count):
        port = option("pcie-root-port", id=slot(number), chassis=number + 1, addr=f"{_SLOT}.{number}")
        yield from ("-device", port + ",multifunction=on" * (number == 0))


def content(table: QemuTable, disk: Disk, place: int, number: int) -> dict[str, object]:
    """What is behind the later disk in a place. number: of the set of descriptors that the device is in.

    The host has opened it for this machine alone: QEMU's locks would add nothing.
    """
    return {
        "driver": "raw",
        "node-name": disk_name(place),
        "read-only": disk.read_only,
        "cache": {"direct": table.block_device_cache_direct, "no-flush": table.block_device_cache_noflush},
        "file": {"driver": "host_device", "filename": f"/dev/fdset/{number}", "locking": "off"},
    }


def device(table: QemuTable, disk: Disk, place: int) -> dict[str, object]:
    """The device of the later disk in a place: the arguments of device_add."""
    name = disk_name(place)
    described: dict[str, object] = {
        "driver": "virtio-blk-pci",
        "bus": BUS_OF_PC if table.machine_type == "pc" else slot(place),
        "id": name,
        "drive": name,
        "serial": disk.id,
        **queues(table),
    }
    logical, physical = table.block_device_logical_sector_size, table.block_device_physical_sector_size
    if logical:
        described["logical_block_size"] = logical
    if logical or physical:  # QEMU takes none that is less than the other
        described["physical_block_size"] = max(logical, physical)
    if threads := block_threads(table):
        described["iothread"] = threads[1 + place % table.indep_iothreads if table.indep_iothreads else 0]
    return described


class LaterDisks:
    """The later disks of one machine.

    count: how many it may have at a time. run: awaits a command of the monitor and says for what it is; it
    raises HypervisorError.
    """

    def __init__(
        self,
        table: QemuTable,
        count: int,
        host: Host,
        monitor: QmpClient,
        run: Callable[[str, Coroutine[Any, Any, object]], Awaitable[object]],
    ) -> None:
        self._table = table
        self._host = host
        self._monitor = monitor
        self._run = run
        self._places: list[str] = [""] * count
        self._sets = 0
        # A descriptor goes with the next command: one disk is plugged at a time.
        self._plugging = anyio.Lock()

    async def add(self, disk: Disk) -> None:
        """Plug one in. Raises HypervisorError; nothing of it is left then."""
        what = f"plug the disk {disk.id}"
        if disk.path.parent != _DEVICES:
            raise NotSupportedError(f"cannot {what}: qemu takes only a block device of the host later")
        if "" not in self._places:
            raise HypervisorError(
                f"cannot {what}: the {len(self._places)} that the machine was made to take are in use"
            )
        place = self._places.index("")
        self._places[place] = disk.id
        try:
            await self._open(disk, place, what)
            try:
                await self._execute(what, "device_add", **device(self._table, disk, place))
            except BaseException:
                await _undo(self._close(place, disk.id))
                raise
        except BaseException:
            self._places[place] = ""
            raise

    async def _open(self, disk: Disk, place: int, what: str) -> None:
        """Have QEMU open a device that the host opens for it."""
        async with self._plugging:
            self._sets += 1
            number = self._sets
            await self._host.give_device(disk.path, write=not disk.read_only)
            await self._execute(what, "add-fd", **{"fdset-id": number})
        try:
            await self._execute(what, "blockdev-add", **content(self._table, disk, place, number))
        except BaseException:
            await _undo(self._forget(number))
            raise
        await self._forget(number)  # what has opened it keeps it

    async def _forget(self, number: int) -> None:
        await self._execute("close a descriptor", "remove-fd", **{"fdset-id": number})

    async def _close(self, place: int, name: str) -> None:
        await self._execute(f"let go of the disk {name}", "blockdev-del", **{"node-name": disk_name(place)})

    async def remove(self, name: str) -> None:
        """Take one out: the guest lets it go. Raises HypervisorError."""
        what = f"take out the disk {name}"
        if not name or name not in self._places:
            raise HypervisorError(f"cannot {what}: it was not plugged in")
        place = self._places.index(name)
        await self._run(what, self._eject(disk_name(place)))
        await self._close(place, name)
        self._places[place] = ""

    async def _eject(self, device: str) -> None:
        deleted = self._monitor.deletion(device)
        try:
            await self._monitor.execute("device_del", {"id": device})
        except QmpError:
            deleted.cancel()
            raise
        await deleted

    async def _execute(self, what: str, command: str, **arguments: object) -> None:
        await self._run(what, self._monitor.execute(command, arguments))


async def _undo(step: Coroutine[Any, Any, None]) -> None:
    """Take back what was done for a disk that is refused: the refusal is what the caller is told."""
    try:
        await finish(step)
    except HypervisorError as error:
        _log.warning("what was done for a disk is left in QEMU: %s", error)
