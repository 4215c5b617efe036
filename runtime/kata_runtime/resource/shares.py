"""A container's files of the host, put where the guest sees them: its root file system and its volumes."""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from kata_agent.protos import types_pb2
from kata_agent.protos.agent_pb2 import Storage
from kata_runtime.block_nodes import BlockNode, access, rules_of
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.shared_source import SharedSource, forbidden
from kata_runtime.container import guest_spec
from kata_runtime.container.assigned_disk import AssignedDisk
from kata_runtime.container.guest_spec import GuestSource
from kata_runtime.container.process import Container
from kata_runtime.errors import InvalidRequestError, RuntimeRoomError, SandboxError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kata_configuration.bind_mount import BindMount
    from kata_runtime.broker.client import Broker

GUEST_ASSIGNED = "/run/kata-containers/assigned"
"""Where the guest mounts the disks that are volumes."""

SANDBOX_MOUNTS = "sandbox-mounts"
"""The directory of what is shared with the guest itself, below the shared one. Source: Kata Containers."""

_log = logging.getLogger(__name__)


class RootfsMount(NamedTuple):
    """One of the mounts that containerd's snapshotter gives for a root file system."""

    type: str
    source: str
    options: tuple[str, ...]


class Shares:
    """What the containers of a sandbox share from the host, through its broker.

    directory: the directory of the host that the guest sees as guest_spec.GUEST_SHARED.
    """

    def __init__(self, broker: Broker, directory: str) -> None:
        self._broker = broker
        self._directory = directory

    async def share(self, container: Container, rootfs: tuple[RootfsMount, ...]) -> dict[int, GuestSource]:
        """Share a container's files; `unshare` undoes what was done, also after an error.

        rootfs: containerd's mounts; without any, the bundle's own directory is shared.
        Returns where the guest sees each volume, by its index in the specification's mounts; one that is a
        block device is among the container's `nodes` instead, and the device of one that the guest mounts
        among its `assigned`.

        Raises:
            InvalidRequestError: the specification names a source that is not there.
            UnsupportedError: a source is of a kind that means nothing in the guest.
            BrokerError: the host could not do it.
        """
        await self.share_rootfs(container, rootfs)
        sources = {}
        for volume in guest_spec.volumes_of(container.spec):
            if volume.index in container.memory:
                continue
            shared = await self._share_volume(container, volume)
            if shared.fstype:
                sources[volume.index] = _assigned(container, volume, shared)
            elif shared.device:
                container.nodes.append(_node(container, volume, shared))
            else:
                sources[volume.index] = self._found(container, volume, shared)
        return sources

    async def share_rootfs(self, container: Container, mounts: tuple[RootfsMount, ...]) -> None:
        """Mount a container's root file system, and nothing else. As `share` otherwise."""
        if container.id == SANDBOX_MOUNTS:
            raise InvalidRequestError(
                f"cannot create container {container.id}: the guest has a directory of this name for "
                "sandbox_bind_mounts; give the container another id"
            )
        container.home = os.path.join(self._directory, container.id)
        await self._broker.make_directory(container.home)
        target = os.path.join(container.home, "rootfs")
        if mounts:
            await self._broker.make_directory(target)
            await self._broker.mount(target, [(m.type, m.source, m.options) for m in mounts])
        else:
            await self._bind_root(container, target)
        container.mounts.append(target)

    async def _bind_root(self, container: Container, target: str) -> None:
        directory = os.path.join(container.root, "")  # with a slash at its end, no file is found
        try:
            await self._broker.bind(directory, target, readonly=False)
        except RequestFailedError as error:
            raise _explain(
                error,
                f"cannot create container {container.id}: "
                f"its root file system {container.root} is not a directory",
            ) from None

    async def _share_volume(self, container: Container, volume: guest_spec.Volume) -> SharedSource:
        source = volume.source
        absent = (
            f"cannot create container {container.id}: "
            f"the source {source!r} of the mount on {volume.destination} does not exist"
        )
        if not os.path.isabs(source):
            raise InvalidRequestError(absent)
        try:
            return await self._broker.share(
                source,
                readonly=volume.readonly,
                recursive=volume.recursive,
                readonly_below=volume.readonly_below,
            )
        except RequestFailedError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise UnsupportedError(f"cannot create container {container.id}: {error}") from None
            raise _explain(error, absent) from None

    def _found(self, container: Container, volume: guest_spec.Volume, shared: SharedSource) -> GuestSource:
        """Where the guest sees a volume that is shared."""
        container.volumes.append(shared.place)
        path = f"{guest_spec.GUEST_SHARED}/{shared.place}"
        found = GuestSource(path, readonly=shared.readonly, below=tuple(shared.below))
        return self._watched(container, shared.place, found) if volume.updated else found

    def _watched(self, container: Container, place: str, found: GuestSource) -> GuestSource:
        """Where the guest has a copy of a volume that it keeps up to date; its storage tells it so."""
        if place.count("/") > 1:
            return found  # a part of another volume, to which a container may have access: no copy of that
        copy = f"{guest_spec.GUEST_WATCHED}/{os.path.basename(place)}"
        container.storages.append(
            Storage(
                driver="watchable-bind",
                source=found.path,
                fstype="bind",
                options=["rbind", "ro"],
                mount_point=copy,
            )
        )
        return GuestSource(copy, readonly=True)

    async def unshare(self, container: Container) -> bool:
        """Unmount what was shared for a container; what fails is undone with the sandbox.

        Returns whether anything was.
        """
        shared = bool(container.volumes or container.mounts)
        try:
            while container.volumes:
                await self._broker.unshare(container.volumes.pop())
            while container.mounts:
                target = container.mounts.pop()
                await self._broker.unmount(target)
                await self._broker.remove(target)
            if container.home:
                await self._broker.remove(container.home)
        except (OSError, RuntimeRoomError) as error:
            _log.debug("container %s: %s; left to the sandbox's end", container.id, error)
        return shared


async def share_with_guest(broker: Broker, directory: str, mounts: Sequence[BindMount]) -> None:
    """Share what the configuration gives every guest; it is undone with the sandbox.

    directory: as of Shares.

    Raises:
        SandboxError: a source is missing, or of a kind that means nothing in the guest.
        BrokerError: the host could not do it.
    """
    for mount in mounts:
        try:
            mode = os.stat(mount.source).st_mode
        except OSError as error:
            raise _unshareable(mount, f"{error.strerror}") from error
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise _unshareable(mount, "it is neither a directory nor a file with content")
        target = os.path.join(directory, SANDBOX_MOUNTS, mount.name)
        await broker.bind(mount.source, target, readonly=mount.readonly)


def _unshareable(mount: BindMount, why: str) -> SandboxError:
    return SandboxError(
        "vmm",
        f"cannot share {mount.source} with the guest, as sandbox_bind_mounts in [runtime] demands: {why}; "
        "correct the entry or remove it",
    )


def _assigned(container: Container, volume: guest_spec.Volume, shared: SharedSource) -> GuestSource:
    """A volume that is a file system of the guest's, on a disk that is plugged in later."""
    write = not volume.readonly and not shared.readonly
    storage = Storage(
        driver="blk",
        fstype=shared.fstype,
        options=[*shared.options, *([] if write or "ro" in shared.options else ["ro"])],
        mount_point=f"{GUEST_ASSIGNED}/{shared.device.replace(':', '_')}",
    )
    if shared.fs_group is not None:
        storage.fs_group.group_id = shared.fs_group
        storage.fs_group.group_change_policy = (
            types_pb2.OnRootMismatch if shared.on_mismatch else types_pb2.Always
        )
    container.storages.append(storage)
    container.assigned.append(AssignedDisk(volume.destination, shared.device, write, storage))
    return GuestSource(storage.mount_point, readonly=not write)


def _node(container: Container, volume: guest_spec.Volume, shared: SharedSource) -> BlockNode:
    """A mounted block device. Raises UnsupportedError: another container of the pod may open it only."""
    allowed = access(rules_of(container.spec), shared.device)
    if "r" not in allowed:
        raise UnsupportedError(
            f"cannot create container {container.id}: {forbidden(volume.source, shared.device)}"
        )
    return BlockNode(
        volume.destination,
        shared.device,
        write=not volume.readonly and "w" in allowed,
        mount=volume.index,
        mode=shared.mode,
        user=shared.user,
        group=shared.group,
    )


def _explain(error: RequestFailedError, absent: str) -> Exception:
    """What to raise when a source could not be shared."""
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return InvalidRequestError(absent) if missing else error
