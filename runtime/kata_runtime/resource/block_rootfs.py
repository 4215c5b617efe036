"""A container's root file system as a disk of the guest, for hypervisors that share no files.

Where the snapshotter gives a block device, that is the disk. Else the disk is a read-only image of the files,
and the guest puts a writable overlay on it, in its own memory. The first container's is there from the start,
those of later ones are plugged in, and found by what the driver calls them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from kata_agent.protos import agent_pb2
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import Disk
from kata_hypervisor.host import Child, ExitStatus
from kata_runtime.container import guest_spec
from kata_runtime.container.process import Container
from kata_runtime.errors import SandboxError, UnsupportedError
from kata_runtime.resource.shares import RootfsMount, Shares

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker

GUEST_DIRECTORY = "/run/kata-containers/rootfs"
DISK_FILESYSTEMS = ("ext4", "xfs", "btrfs")
DISK_ID = "rootfs"
OUTPUT_TAIL = 8192
"""Bytes that are kept of what the maker of images writes."""


class BlockRootfs:
    """Turns containers' root file systems into disks, through a sandbox's broker."""

    def __init__(self, broker: Broker, shares: Shares) -> None:
        self._broker = broker
        self._shares = shares
        self._plugged = 0

    async def make(self, container: Container, mounts: tuple[RootfsMount, ...], device: str) -> Disk:
        """Make a disk for the machine's start; the container's `storages` get how the guest mounts it.

        device: the disk's node in the guest, "/dev/vdb".

        Raises:
            UnsupportedError: the container needs files of the host beside its root file system.
            SandboxError: the image cannot be made.
            BrokerError: the host could not do it.
        """
        _refuse_volumes(container)
        if len(mounts) == 1 and _is_block_device(mounts[0]):
            container.storages = [_block_storage(container.id, device, mounts[0])]
            return Disk(DISK_ID, Path(mounts[0].source), read_only="ro" in mounts[0].options)
        return await self._make(container, mounts, DISK_ID, device)

    async def make_later(self, container: Container, mounts: tuple[RootfsMount, ...]) -> Disk:
        """Make a disk to be plugged in; `locate` puts in its node then. Raises as `make` does.

        UnsupportedError too for a block device of the host: this process cannot look at it any more, and who
        owns this process would name another one.
        """
        _refuse_volumes(container)
        if len(mounts) == 1 and mounts[0].type in DISK_FILESYSTEMS:
            raise UnsupportedError(
                f"cannot create container {container.id}: its root file system is the block device "
                f"{mounts[0].source}, which cannot be plugged into a running sandbox; "
                "use the overlayfs snapshotter, or configure a hypervisor with virtio-fs"
            )
        self._plugged += 1
        return await self._make(container, mounts, f"{DISK_ID}_{self._plugged}", "")

    async def _make(
        self, container: Container, mounts: tuple[RootfsMount, ...], name: str, device: str
    ) -> Disk:
        image, mode = await self._image(container, mounts)
        container.storages = overlay_storages(container.id, device, mode)
        return Disk(name, image, read_only=True)

    async def _image(self, container: Container, mounts: tuple[RootfsMount, ...]) -> tuple[Path, int]:
        """Mount the files, make the image where they are seen, and unmount them."""
        await self._shares.share(container, mounts)
        try:
            root = container.rootfs
            output, status = await run_maker(self._broker, root)
        finally:
            await self._shares.unshare(container)
        last = output.strip().rpartition("\n")[2]
        path, _, mode = last.rpartition(" ")
        if status.code != 0 or not path:
            raise SandboxError("rootfs", last or f"cannot make an image of {root}: {status}")
        return Path(path), int(mode, 8)


async def run_maker(broker: Broker, root: str) -> tuple[str, ExitStatus]:
    """Let the broker make an image of what is mounted; return the tail of its output, and how it exited."""
    child, descriptor = await broker.make_image(root)
    written = b""
    try:
        while piece := await _read(descriptor):
            written = (written + piece)[-OUTPUT_TAIL:]
        return written.decode("utf-8", "replace"), await child.wait()
    finally:
        os.close(descriptor)
        await finish(_end(child))


async def _end(child: Child) -> None:
    await child.kill()
    await child.wait()


async def _read(descriptor: int) -> bytes:
    """The next piece of what is written into a pipe; nothing at its end."""
    while True:
        try:
            return os.read(descriptor, OUTPUT_TAIL)
        except BlockingIOError:
            await anyio.wait_readable(descriptor)


def _refuse_volumes(container: Container) -> None:
    volumes = [
        volume for volume in guest_spec.volumes_of(container.spec) if volume.index not in container.memory
    ]
    if volumes:
        raise UnsupportedError(
            f"cannot create container {container.id}: the hypervisor shares no files of the host, "
            f"so there can be no mount on {volumes[0].destination}; "
            "remove it, or configure a hypervisor with virtio-fs"
        )


def _is_block_device(mount: RootfsMount) -> bool:
    try:
        return mount.type in DISK_FILESYSTEMS and stat.S_ISBLK(os.stat(mount.source).st_mode)
    except FileNotFoundError:
        return False


def _block_storage(container_id: str, device: str, mount: RootfsMount) -> agent_pb2.Storage:
    return agent_pb2.Storage(
        driver="blk",
        source=device,
        fstype=mount.type,
        options=list(mount.options),
        mount_point=guest_spec.rootfs_of(container_id),
    )


def locate(container: Container, node: str) -> None:
    """Say where in the guest the disk is that a container's files are on, once it is plugged in."""
    container.storages[0].source = node


def overlay_storages(container_id: str, device: str, mode: int) -> list[agent_pb2.Storage]:
    """Say how the guest puts a root file system together, in order, from an image and its own memory.

    mode: of the root directory, which an overlay takes from its upper layer.
    """
    home = f"{GUEST_DIRECTORY}/{container_id}"
    lower, memory = f"{home}/lower", f"{home}/memory"
    layers = {"lowerdir": lower, "upperdir": f"{memory}/upper", "workdir": f"{memory}/work"}
    return [
        agent_pb2.Storage(driver="blk", source=device, fstype="erofs", options=["ro"], mount_point=lower),
        agent_pb2.Storage(driver="ephemeral", source="tmpfs", fstype="tmpfs", mount_point=memory),
        agent_pb2.Storage(driver="local", options=[f"mode={mode:o}"], mount_point=layers["upperdir"]),
        agent_pb2.Storage(driver="local", options=["mode=700"], mount_point=layers["workdir"]),
        agent_pb2.Storage(
            driver="overlayfs",
            source="overlay",
            fstype="overlay",
            options=[f"{key}={value}" for key, value in layers.items()],
            mount_point=guest_spec.rootfs_of(container_id),
        ),
    ]
