"""The block devices that a sandbox may have: those that a config.json of its containers gives, and no others.

A device is opened for this sandbox alone (O_EXCL): one that is mounted, or that another pod has, is refused.
The kernel keeps the pod's processes from devices (`device_rules`); they may open this one while it is opened
here, and not afterwards. What is opened lies behind a mount of its own on which no device can be opened any
more: virtiofsd is root, and would open it for writing by /proc/self/fd when a guest that owns both has passed
it there.

A VMM that takes no descriptor, but a path, is shown a node: it may open the device as long as it is shown.
The broker holds the device for this sandbox from then on until the sandbox ends. Whether a VMM that its guest
owns has let it go nobody can see, and the next who has the device would share it with that guest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from kata_runtime import device_names, syscalls
from kata_runtime.block_nodes import access, block_nodes, devices_of, rules_of
from kata_runtime.broker.device_rules import BLOCK, DeviceRule
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.sandbox_cgroup import SandboxCgroup
    from kata_runtime.broker.vmm_directory import VmmDirectory

    _File = tuple[int, int, int]

_BLKROGET = 0x125E
_WHY = {
    errno.EBUSY: "it is in use: it is mounted, or another pod or program of the host has it",
    errno.EACCES: "it is read-only; give it to the container read-only",
    errno.EROFS: "it is read-only; give it to the container read-only",
    errno.ENXIO: "it has no content",
    errno.ENOMEDIUM: "it has no content",
}


class GivenDevices:
    """Which block devices containerd gave, and whether to be written.

    Each is given by a file: a config.json, or a registration. Its number means the disk that had it when this
    runtime first read that file. A disk can go while the pod runs, and its number come to another pod's; who
    owns the shim would ask for the number again, and have the file read again.
    """

    def __init__(self) -> None:
        # By the file and the device: the disk, as `device_names.disk_of` has it.
        self._disks: dict[tuple[_File, str], str] = {}
        # By the same: whether it may be written.
        self._given: dict[tuple[_File, str], bool] = {}
        self._rules: dict[str, tuple[_File, list[dict[str, Any]]]] = {}

    def learn(self, spec: dict[str, Any], bundle: str, file: os.stat_result) -> None:
        """Take those of a specification that is this sandbox's. file: what it was read of."""
        rules = rules_of(spec)
        self._rules[bundle] = _identity(file), rules
        for device in devices_of(rules):
            self._note(_identity(file), device)
        for node in block_nodes(spec):
            self._add(_identity(file), node.device, write=node.write)

    def add_mounted(self, device: str, *, write: bool) -> bool:
        """Take one that a specification's mount names, as far as rules allow a container to open it.

        A node alone gives nothing, as with other runtimes: whoever fills a volume may have made it. Returns
        whether it is given.
        """
        given = False
        for file, rules in self._rules.values():
            allowed = access(rules, device)
            if "r" in allowed:
                self._add(file, device, write=write and "w" in allowed)
                given = True
        return given

    def add_assigned(self, device: str, file: os.stat_result, *, write: bool) -> None:
        """Take one that root has registered for a volume of a specification's, see `direct_volumes`.

        file: the registration.
        """
        self._add(_identity(file), device, write=write)

    def _add(self, file: _File, device: str, *, write: bool) -> None:
        self._note(file, device)
        self._given[file, device] = self._given.get((file, device), False) or write

    def _note(self, file: _File, device: str) -> None:
        if (file, device) not in self._disks:
            self._disks[file, device] = device_names.disk_of(device)

    def check(self, device: str, *, write: bool) -> None:
        """See that a device was given, and to be written if that is asked for.

        Raises:
            RequestRefusedError: it was not, or its number is another disk's by now.
            RequestFailedError: the host has no such device.
        """
        given = {key: writes for key, writes in self._given.items() if key[1] == device}
        if not given:
            raise RequestRefusedError(
                f"cannot open the block device {device}: no config.json of the sandbox names it"
            )
        path, disk = _path_of(device), device_names.disk_of(device)
        same = [writes for key, writes in given.items() if disk and self._disks[key] == disk]
        if not same:
            raise RequestRefusedError(
                f"cannot open {path}: it is not the disk that had the number {device} when the sandbox got "
                "it; create the container anew"
            )
        if write and not any(same):
            raise RequestRefusedError(
                f"cannot open the block device {device} to write: no config.json of the sandbox names it so"
            )


def _identity(file: os.stat_result) -> _File:
    """What no other file has, nor the same after a change."""
    return file.st_dev, file.st_ino, file.st_ctime_ns


class BlockDevices:
    """Opens them. vmm: shows them to a VMM."""

    def __init__(self, given: GivenDevices, cgroup: SandboxCgroup, vmm: VmmDirectory) -> None:
        self._given = given
        self._cgroup = cgroup
        self._vmm = vmm
        # By the disk's name: a shown device, and what lets the VMM open it.
        self._shown: dict[str, tuple[str, DeviceRule]] = {}
        # By the device and the disk that it was: what keeps one that was shown from others.
        self._claims: dict[tuple[str, str], int] = {}

    def open(self, device: str, *, write: bool) -> int:
        """Open a device, "7:0"; the descriptor is the caller's.

        Raises:
            RequestRefusedError: nobody gave it. RequestFailedError: it is gone, in use, or without content.
        """
        self._given.check(device, write=write)
        major, minor = map(int, device.split(":"))
        path = _path_of(device)
        access = "rw" if write else "r"
        try:
            descriptor = self._cgroup.admit(
                DeviceRule(BLOCK, major, minor, access),
                lambda: _open(path, os.makedev(major, minor), write=write),
            )
        except OSError as error:
            raise _failure(path, error.errno, error.strerror) from None
        try:
            self._given.check(device, write=write)  # what has the number now has had it all the while
            if not os.lseek(descriptor, 0, os.SEEK_END):
                raise _failure(path, errno.ENXIO)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def show(self, disk: str, device: str, *, write: bool) -> str:
        """Let the VMM open a device under a disk's name, until `hide`; return the path at which it does.

        Raises as `open`, and RequestRefusedError: the VMM has a disk of the name, or too many.
        """
        kept = device, device_names.disk_of(device)
        claim = self._claim(kept, write=write)
        major, minor = map(int, device.split(":"))
        rule = DeviceRule(BLOCK, major, minor, "rwm" if write else "rm")
        try:
            self._cgroup.allow(rule)
            try:
                path = self._vmm.show_device(disk, os.makedev(major, minor), write=write)
            except BaseException:
                self._cgroup.forbid(rule)
                raise
        except BaseException:
            if kept not in self._claims:
                os.close(claim)
            raise
        self._claims[kept] = claim
        self._shown[disk] = device, rule
        return path

    def _claim(self, kept: tuple[str, str], *, write: bool) -> int:
        """What keeps a device from others: a new claim, or that which is left of when it was shown before."""
        device, _ = kept
        if (claim := self._claims.get(kept, -1)) < 0:
            return self.open(device, write=write)
        self._given.check(device, write=write)
        if any(shown == device for shown, _ in self._shown.values()):
            raise _failure(_path_of(device), errno.EBUSY)
        if write and _is_read_only(claim):
            raise _failure(_path_of(device), errno.EROFS)
        return claim

    def hide(self, disk: str) -> None:
        """Take a shown device away from the VMM; nothing for another disk. It stays this sandbox's."""
        if disk in self._shown:
            _, rule = self._shown.pop(disk)
            try:
                self._vmm.hide_disk(disk)
            finally:
                self._cgroup.forbid(rule)


def _path_of(device: str) -> str:
    """Its node on the host, as the kernel names it."""
    path = device_names.path_of(device_names.BLOCK, device)
    if not path:
        raise RequestFailedError(f"the host has no block device {device}", errno.ENOENT)
    return path


def _open(path: str, number: int, *, write: bool) -> int:
    """Raises OSError. A device that nobody can write to may have several readers."""
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    found = os.open(path, flags)
    try:
        facts = os.fstat(found)
        if not stat.S_ISBLK(facts.st_mode) or facts.st_rdev != number:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        read_only = _is_read_only(found)
        if write and read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        # The same device, whatever has the name by now.
        return _open_for_good(found, (flags & ~os.O_NOFOLLOW) | (0 if read_only else os.O_EXCL))
    finally:
        os.close(found)


def _open_for_good(found: int, flags: int) -> int:
    """Open a device anew so that its descriptor cannot be opened again with other access. Raises OSError."""
    tree = syscalls.clone_tree(found, recursive=False)
    try:
        descriptor = os.open(f"/proc/self/fd/{tree}", flags)
        try:
            nothing = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV
            syscalls.set_attributes(tree, nothing, recursive=False, propagation=syscalls.MS_PRIVATE)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    finally:
        os.close(tree)


def _is_read_only(descriptor: int) -> bool:
    (found,) = struct.unpack("i", fcntl.ioctl(descriptor, _BLKROGET, bytes(4)))
    return bool(found)


def _failure(path: str, number: int | None, reason: str | None = None) -> RequestFailedError:
    why = _WHY.get(number or 0) or reason
    return RequestFailedError(f"cannot open {path}: {why}", number or 0)
