"""A container's root file system as a disk of the guest, for hypervisors that share no files.

Where the snapshotter gives a block device, that is the disk. Else the disk is a read-only image of the files,
and the guest puts a writable overlay on it, in its own memory.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kata_agent.protos import agent_pb2
from kata_hypervisor.children import Children
from kata_hypervisor.contract import Disk
from kata_runtime import guest_spec
from kata_runtime.errors import SandboxError, UnsupportedError
from kata_runtime.process import Container
from kata_runtime.resource import rootfs_image
from kata_runtime.resource.shares import RootfsMount, Shares

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker

CACHE = "/var/lib/kata-containers/rootfs-images"
CHILD = "rootfs-image"
GUEST_DIRECTORY = "/run/kata-containers/rootfs"
DISK_FILESYSTEMS = ("ext4", "xfs", "btrfs")
DISK_ID = "rootfs"


class BlockRootfs:
    """Turns containers' root file systems into disks, through a sandbox's broker."""

    def __init__(self, broker: Broker, shares: Shares) -> None:
        self._broker = broker
        self._shares = shares

    async def make(self, container: Container, mounts: tuple[RootfsMount, ...], device: str) -> Disk:
        """Make the disk, and tell the container's `storages` how the guest mounts it.

        device: the disk's node in the guest, "/dev/vdb".

        Raises:
            UnsupportedError: the container needs files of the host beside its root file system.
            SandboxError: the image cannot be made.
            BrokerError: the host could not do it.
        """
        volumes = guest_spec.volumes_of(container.spec)
        if volumes:
            raise UnsupportedError(
                f"container {container.id}: this hypervisor shares no files of the host, so there can be no "
                f"mount on {volumes[0].destination}: remove it, or use a hypervisor with virtio-fs"
            )
        if len(mounts) == 1 and _is_block_device(mounts[0]):
            container.storages = [_block_storage(container.id, device, mounts[0])]
            return Disk(DISK_ID, Path(mounts[0].source), read_only="ro" in mounts[0].options)
        image, mode = await self._image(container, mounts)
        container.storages = overlay_storages(container.id, device, mode)
        return Disk(DISK_ID, image, read_only=True)

    async def _image(self, container: Container, mounts: tuple[RootfsMount, ...]) -> tuple[Path, int]:
        """Mount the files, make the image where they are seen, and unmount them."""
        children = Children(self._broker, None)
        await self._shares.share(container, mounts)
        try:
            root = os.path.join(container.home, "rootfs")
            argv = [sys.executable, "-IS", rootfs_image.__file__, root, CACHE]
            child = await children.spawn(CHILD, argv, {}, stdout="image")
            status = await child.wait()
            await children.hear_last_words()
        finally:
            await children.kill()
            await children.wait()
            await children.ours.aclose()
            await self._shares.unshare(container)
        path, _, mode = children.tail("image").last_line.rpartition(" ")
        if status.code != 0 or not path:
            words = children.tail(f"{CHILD} stderr").last_line
            raise SandboxError("rootfs", words or f"cannot make an image of {root}: {status}")
        return Path(path), int(mode, 8)


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
