"""The devices of a guest, by its specification: everything of the host behind them is opened here."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kata_agent.transports import VsockTransport
from kata_hypervisor import vhost_vsock
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.dragonball import file_server
from kata_hypervisor.dragonball.host_files import (
    blank_disk,
    open_disk,
    open_entropy,
    open_network,
    open_spares,
)
from kata_hypervisor.dragonball.virtio.balloon import Balloon
from kata_hypervisor.dragonball.virtio.block import Block
from kata_hypervisor.dragonball.virtio.device import Device
from kata_hypervisor.dragonball.virtio.filesystem import FileSystem
from kata_hypervisor.dragonball.virtio.network import Network
from kata_hypervisor.dragonball.virtio.vsock import Socket
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.host import Host
from kata_hypervisor.virtiofsd import FileServer

if TYPE_CHECKING:
    from kata_configuration.models.dragonball import Dragonball


class GuestDevices:
    """Devices that no machine has yet. unused: closes what is opened, should no machine take it.

    present: those that the guest boots with, in order. spares: empty ones, for what is plugged in later.
    transport: how the guest's agent is reached.
    """

    def __init__(self, unused: ExitStack) -> None:
        self._unused = unused
        self.present: list[Device] = []
        self.spares: list[Block | Network] = []
        self.transport: VsockTransport | None = None

    async def open(self, table: Dragonball, host: Host, server: FileServer, spec: VmSpec) -> None:
        """Open all of them. server: serves the shared directory.

        Raises:
            HostUnfitError, LaunchError, NotSupportedError: the host lacks something, or it cannot be opened.
        """
        if spec.image is not None:
            self._add(open_disk(spec.image, "image", read_only=True))
        for disk in spec.disks:
            blank = spec.saved_to is not None  # each copy has its own
            self._add(blank_disk(disk) if blank else open_disk(disk.path, disk.id, read_only=disk.read_only))
        for tap in spec.taps:
            self._add(open_network(tap))
        self._add(open_entropy())
        self._add(await self._open_vsock(host))
        if spec.shared is not None and spec.saved_to is not None:
            self._add(FileSystem(None, spec.shared.tag, table.virtio_fs_queue_size))
        elif spec.shared is not None:
            served = file_server.start(server, spec, spec.shared, table.virtio_fs_queue_size, host.patience)
            self._add(await served)
        if table.reclaim_guest_freed_memory:
            self._add(Balloon())
        self.spares = open_spares(spec, self._unused)

    def _add(self, device: Device) -> None:
        self._unused.callback(device.close)
        self.present.append(device)

    async def _open_vsock(self, host: Host) -> Socket:
        vsock = vhost_vsock.open_device()
        if vsock is None:
            raise HostUnfitError(
                "cannot connect the guest: this host has no /dev/vhost-vsock; load vhost_vsock"
            )
        descriptor, cid = vsock
        try:
            await host.register_guest(cid)
        except BaseException:
            os.close(descriptor)
            raise
        self.transport = VsockTransport(host.connect_guest, f"guest {cid}")
        return Socket(descriptor, cid)
