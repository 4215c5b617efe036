"""A container's files of the host, put where the guest sees them: its root file system and its volumes."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container import guest_spec
from kata_runtime.container.process import Container
from kata_runtime.errors import InvalidRequestError, RuntimeRoomError

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RootfsMount:
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

    async def share(self, container: Container, rootfs: tuple[RootfsMount, ...]) -> dict[int, str]:
        """Share a container's files; `unshare` undoes what was done, also after an error.

        rootfs: containerd's mounts; without any, the bundle's own directory is shared.
        Returns the guest's path of each volume, by its index in the specification's mounts.

        Raises:
            InvalidRequestError: the specification names a source that is not there.
            BrokerError: the host could not do it.
        """
        await self.share_rootfs(container, rootfs)
        return {
            volume.index: await self._share_volume(container, volume)
            for volume in guest_spec.volumes_of(container.spec)
        }

    async def share_rootfs(self, container: Container, mounts: tuple[RootfsMount, ...]) -> None:
        """Mount a container's root file system, and nothing else. As `share` otherwise."""
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

    async def _share_volume(self, container: Container, volume: guest_spec.Volume) -> str:
        name = f"volume-{volume.index}"
        target = os.path.join(container.home, name)
        source, readonly, recursive = volume.source, volume.readonly, volume.recursive
        absent = (
            f"cannot create container {container.id}: "
            f"the source {source!r} of the mount on {volume.destination} does not exist"
        )
        if not os.path.isabs(source):
            raise InvalidRequestError(absent)
        try:
            await self._broker.bind(source, target, readonly=readonly, recursive=recursive)
        except RequestFailedError as error:
            raise _explain(error, absent) from None
        container.mounts.append(target)
        return f"{guest_spec.GUEST_SHARED}/{container.id}/{name}"

    async def unshare(self, container: Container) -> None:
        """Unmount what was shared for a container; what fails is undone with the sandbox."""
        try:
            while container.mounts:
                target = container.mounts.pop()
                await self._broker.unmount(target)
                await self._broker.remove(target)
            if container.home:
                await self._broker.remove(container.home)
        except (OSError, RuntimeRoomError) as error:
            _log.debug("container %s: %s; left to the sandbox's end", container.id, error)


def _explain(error: RequestFailedError, absent: str) -> Exception:
    """What to raise when a source could not be shared."""
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return InvalidRequestError(absent) if missing else error
