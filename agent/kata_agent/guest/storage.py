"""Storages: mounts that the host asks for, for the sandbox or for one container.

A mount point may be asked for several times; it is mounted once, and goes away with its last owner. What is
mounted below _OF_SANDBOX is the pod's, whichever container asks for it first: what one container has put into
a volume in memory is there for the next, also when the first has been removed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

from kata_agent.guest import devices, file_cache, mounts, syscalls
from kata_agent.guest.errors import InvalidRequestError, UnsupportedError
from kata_agent.guest.files import remove_tree
from kata_agent.guest.watched import WatchedCopies
from kata_agent.protos import agent_pb2, types_pb2

SANDBOX = ""
"""The owner of storages that live as long as the sandbox; containers are owners by their id."""

_WATCHED = "watchable-bind"
_OF_SANDBOX = "/run/kata-containers/sandbox/"
_FS_GROUP_OPTION = "fsgid="
_OPEN_FILES_OPTION = "open_files="


class StorageTable:
    """Which storages are mounted, and for whom."""

    def __init__(self) -> None:
        self._copies = WatchedCopies()
        self._drivers = {**_DRIVERS, _WATCHED: self._watch}
        self._lock = threading.Lock()
        self._owners: dict[str, set[str]] = {}

    def add(self, storages: Iterable[agent_pb2.Storage], owner: str) -> None:
        """Mount storages for an owner; on failure those of this call that were mounted stay the owner's.

        Raises:
            InvalidRequestError: an unknown driver or an unsafe mount point.
            NotFoundError: a device is missing.
            OSError: the mount itself failed.
        """
        with self._lock:
            for storage in storages:
                self._add(storage, owner)

    def _add(self, storage: agent_pb2.Storage, owner: str) -> None:
        handler = self._drivers.get(storage.driver)
        if handler is None:
            known = ", ".join(self._drivers)
            raise InvalidRequestError(f"storage driver {storage.driver!r} is not known (known: {known})")
        target = storage.mount_point.rstrip("/")
        if target not in self._owners:
            target = mounts.check_target(storage.mount_point, "mount point")
            handler(storage, target)
            _give_to_group(storage, target)
        self._owners.setdefault(target, set()).add(SANDBOX if target.startswith(_OF_SANDBOX) else owner)

    def release(self, owner: str) -> None:
        """Unmount what only this owner still used, latest first."""
        with self._lock:
            for target in reversed(list(self._owners)):
                owners = self._owners[target]
                owners.discard(owner)
                if not owners:
                    del self._owners[target]
                    self._copies.remove(target)
                    _unmount(target)

    def _watch(self, storage: agent_pb2.Storage, target: str) -> None:
        """A copy of a volume that the host updates, see `watched`; what is none of these is bound."""
        source = mounts.check_target(storage.source, "source")
        if self._copies.add(source, target):
            return
        if os.path.isdir(source):
            os.makedirs(target, mode=0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            with open(target, "a"):
                pass
        mounts.bind(source, target)


def drivers() -> list[str]:
    """The drivers that `StorageTable.add` takes."""
    return [*_DRIVERS, _WATCHED]


def _unmount(target: str) -> None:
    was_mounted = target in mounts.mount_points()
    mounts.detach(target)
    try:
        if was_mounted:
            os.rmdir(target) if os.path.isdir(target) else os.unlink(target)
        else:
            remove_tree(target)
    except OSError:
        pass  # below a shared directory of the host's, where this is not ours to remove


def _mount(storage: agent_pb2.Storage, target: str, source: str, fstype: str, options: list[str]) -> None:
    flags, data = mounts.parse_options(options)
    os.makedirs(target, mode=0o755, exist_ok=True)
    syscalls.mount(source, target, fstype, flags, data)


def _virtio_fs(storage: agent_pb2.Storage, target: str) -> None:
    """The driver's option open_files=NUMBER says how many files the host's server may have open."""
    for option in storage.driver_options:
        if option.startswith(_OPEN_FILES_OPTION):
            file_cache.keep(_number(option, 10))
    _mount(storage, target, storage.source, "virtiofs", list(storage.options))


def _ephemeral(storage: agent_pb2.Storage, target: str) -> None:
    """A tmpfs; the option fsgid=GROUP is the agent's own."""
    if storage.fstype not in ("", "tmpfs"):
        raise UnsupportedError(f"ephemeral storage of type {storage.fstype!r} is not supported, only tmpfs")
    options = [option for option in storage.options if not option.startswith(_FS_GROUP_OPTION)]
    _mount(storage, target, "tmpfs", "tmpfs", options)
    _apply_group_option(storage, target)


def _local(storage: agent_pb2.Storage, target: str) -> None:
    """A directory on the guest's own memory-backed file system; options mode=OCTAL and fsgid=GROUP."""
    os.makedirs(target, exist_ok=True)
    for option in storage.options:
        if option.startswith("mode="):
            os.chmod(target, _number(option, 8) & 0o7777)
    _apply_group_option(storage, target)


def _apply_group_option(storage: agent_pb2.Storage, target: str) -> None:
    for option in storage.options:
        if option.startswith(_FS_GROUP_OPTION):
            os.chown(target, -1, _number(option, 10))
            os.chmod(target, os.stat(target).st_mode & 0o7777 | 0o2000)


def _number(option: str, base: int) -> int:
    try:
        return int(option.partition("=")[2], base)
    except ValueError:
        raise InvalidRequestError(f"storage option {option!r} has no valid number") from None


def _block(storage: agent_pb2.Storage, target: str) -> None:
    _mount(storage, target, devices.block_device(storage.source), storage.fstype, list(storage.options))


def _overlay(storage: agent_pb2.Storage, target: str) -> None:
    _mount(storage, target, "overlay", "overlay", list(storage.options))


def _give_to_group(storage: agent_pb2.Storage, target: str) -> None:
    """Hand a volume to the pod's file system group, as Kubernetes' fsGroup asks."""
    if not storage.HasField("fs_group"):
        return
    group = storage.fs_group
    read_only = "ro" in storage.options
    top = os.stat(target)
    wanted = 0o550 if read_only else 0o770
    if (
        group.group_change_policy == types_pb2.OnRootMismatch
        and top.st_gid == group.group_id
        and top.st_mode & 0o2000
        and top.st_mode & wanted == wanted
    ):
        return
    for directory, _, names in os.walk(target):
        _give(directory, group.group_id, 0o2550 if read_only else 0o2770)
        for name in names:
            if not os.path.islink(f"{directory}/{name}"):
                _give(f"{directory}/{name}", group.group_id, 0o440 if read_only else 0o660)


def _give(path: str, group: int, mode: int) -> None:
    os.chown(path, -1, group)
    os.chmod(path, os.stat(path).st_mode & 0o7777 | mode)


_DRIVERS: dict[str, Callable[[agent_pb2.Storage, str], None]] = {
    "virtio-fs": _virtio_fs,
    "ephemeral": _ephemeral,
    "local": _local,
    "overlayfs": _overlay,
    **dict.fromkeys(devices.BLOCK_DRIVERS, _block),
}
