"""Block devices of the host as disks of the guest: plugged in for the containers of a pod that name them.

One that several containers name is plugged in once, and taken out with the last of them. The guest's agent
makes each container's node from what the guest found.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from kata_hypervisor.contract import Disk
from kata_runtime.container import devices
from kata_runtime.errors import InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    from kata_runtime.block_nodes import BlockNode
    from kata_runtime.container.assigned_disk import AssignedDisk
    from kata_runtime.container.guest import Guest
    from kata_runtime.container.process import Container

NO_DISKS = (
    "its hypervisor plugs in no such disk; leave it out, configure a hypervisor that does, such as qemu, or "
    "give the container a volume of files"
)
_HOME = "/dev/"


class _Plugged:
    """A device that is plugged in. users: containers, as often as they name it."""

    def __init__(self, disk: Disk, found_by: str) -> None:
        self.disk = disk
        self.found_by = found_by
        self.users = 0


class BlockDevices:
    """Those of one sandbox."""

    def __init__(self) -> None:
        self._plugged: dict[str, _Plugged] = {}
        self._made = 0
        self._lock = anyio.Lock()

    async def plug(self, container: Container, guest: Guest) -> None:
        """Plug in the block devices that a container is given; `unplug` undoes it, after an error too.

        Raises:
            UnsupportedError: the guest takes none, or has the device read-only for another container.
            HypervisorError: one cannot be opened or plugged in; the message names it.
        """
        if not guest.takes_devices:
            devices.refuse_blocks(container.id, container.blocks, NO_DISKS)
        for node in container.nodes:
            check_path(container.id, node)
        async with self._lock:
            for given in container.blocks:
                await self._use(container, given, guest)

    async def _use(self, container: Container, node: BlockNode | AssignedDisk, guest: Guest) -> None:
        plugged = self._plugged.get(node.device) or await self._plug(node, guest)
        if node.write and plugged.disk.read_only:
            raise UnsupportedError(
                f"cannot create container {container.id}: it is to write to {node.path}, and the block "
                f"device {node.device} is in the pod read-only already; create the container that writes "
                "to it first, or make it read-only here too"
            )
        plugged.users += 1
        container.plugged.append(node.device)
        node.found_by = plugged.found_by

    async def _plug(self, node: BlockNode | AssignedDisk, guest: Guest) -> _Plugged:
        self._made += 1
        disk = Disk(f"device_{self._made}", Path("/dev/block", node.device), read_only=not node.write)
        plugged = self._plugged[node.device] = _Plugged(disk, await guest.add_disk(disk))
        return plugged

    async def unplug(self, container: Container, guest: Guest) -> None:
        """Take out what no other container has; idempotent. Raises HypervisorError, RuntimeRoomError."""
        async with self._lock:
            while container.plugged:
                device = container.plugged.pop()
                plugged = self._plugged[device]
                plugged.users -= 1
                if not plugged.users:
                    del self._plugged[device]
                    await guest.remove_disk(plugged.disk.id)


def check_path(container_id: str, node: BlockNode) -> None:
    """See that a node is where the guest can make one: its root file system is the host's.

    Raises:
        InvalidRequestError: it is somewhere else.
    """
    if not node.path.startswith(_HOME):
        raise InvalidRequestError(
            f"cannot create container {container_id}: the node {node.path} of a block device has to be below "
            "/dev, which is the guest's own"
        )
