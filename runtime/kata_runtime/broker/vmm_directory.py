"""What a confined VMM sees of its sandbox: a directory for its sockets, and the disks that it is given later.

<directory>/vmm is a small tmpfs that belongs to the pod's user, the only place where its VMM may make
anything. <directory>/disks is the broker's: a disk that is plugged into the running machine is mounted
there, read-only, under its id; of a block device, a node that the pod's user owns, on a mount of its own
that lets it be opened. The VMM's own view of it is a slave mount (mount_namespaces(7)), which receives what
comes later. Both are in the broker's mount namespace, and end with it.
"""

from __future__ import annotations

import os
import socket
import stat

from kata_hypervisor.vmm_paths import DISKS, RUN_DIRECTORY
from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DISKS = 64
"""Disks that a VMM may have been given at a time."""

_RUN_OPTIONS = "mode=0700,size=1m,nr_inodes=64"
_DISK_OPTIONS = "mode=0755,size=64k,nr_inodes=128"
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_SHOWN = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class VmmDirectory:
    """The directory of one sandbox's VMM, made when it is first needed.

    directory: the sandbox's. user: tells whose it is; raises RequestRefusedError as long as it is nobody's.
    namespace: whether the broker has a mount namespace of its own; there is none to be had without one.
    """

    def __init__(self, directory: str, user: Callable[[], int], *, namespace: bool) -> None:
        self.path = os.path.join(directory, RUN_DIRECTORY)
        self.disks_path = os.path.join(directory, DISKS)
        self._user = user
        self._namespace = namespace
        self._disks = -1
        self._mounted: list[str] = []
        # The paths of those that are mounted.
        self.shown: set[str] = set()

    def make(self) -> None:
        """Make both directories; nothing when they are there.

        Raises:
            RequestRefusedError: the broker has no mount namespace, or the pod no user.
            OSError: the host cannot do it.
        """
        if self._disks >= 0:
            return
        if not self._namespace:
            raise RequestRefusedError("the sandbox has no mount namespace for its VMM's directory")
        user = self._user()
        for path, options in (
            (self.path, f"{_RUN_OPTIONS},uid={user},gid={user}"),
            (self.disks_path, _DISK_OPTIONS),
        ):
            os.mkdir(path, 0o700)
            syscalls.mount("kata-vmm", path, "tmpfs", _FLAGS, options)
            self._mounted.append(path)
        self._disks = os.open(self.disks_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def listen(self, path: str) -> int:
        """Listen on a new socket in the VMM's directory, for the VMM to connect to; return its descriptor.

        Raises:
            RequestRefusedError: it is somewhere else. OSError: it cannot be made.
        """
        parent, name = os.path.split(path)
        if parent != self.path or name in ("", ".", ".."):
            raise RequestRefusedError(f"{path} is not in the VMM's directory {self.path}")
        self.make()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chown(path, self._user(), self._user(), follow_symlinks=False)
            listener.listen(1)
            return listener.detach()

    def show_disk(self, name: str, image: int) -> str:
        """Let the VMM see an image, and return the path at which it does. image: its descriptor.

        Raises:
            RequestRefusedError: there is one of the name, or there are too many. OSError: the host cannot.
        """
        self._check_room(name)
        if not stat.S_ISREG(os.fstat(image).st_mode):
            raise RequestRefusedError(f"the disk {name} is not a regular file")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o444, dir_fd=self._disks))
        return self._mount(name, image, _SHOWN | syscalls.MOUNT_ATTR_NODEV)

    def show_device(self, name: str, number: int, *, write: bool) -> str:
        """Let the VMM see a block device, by its number; as `show_disk`."""
        self._check_room(name)
        user = self._user()
        os.mknod(name, stat.S_IFBLK | (0o600 if write else 0o400), number, dir_fd=self._disks)
        return self._mount(name, None, _SHOWN, user)

    def _check_room(self, name: str) -> None:
        if self._disks < 0:
            raise RequestRefusedError("the sandbox's VMM was not made to see disks later")
        if os.path.join(self.disks_path, name) in self.shown or len(self.shown) >= MAX_DISKS:
            raise RequestRefusedError(f"the VMM has a disk {name} already, or {MAX_DISKS} of them")

    def _mount(self, name: str, source: int | None, attributes: int, user: int | None = None) -> str:
        """Mount something on the place of a disk, or the place on itself; it goes away where that fails.

        source: the descriptor of what is mounted there. user: who gets the place.
        """
        place = tree = -1
        try:
            if user is not None:
                os.chown(name, user, user, dir_fd=self._disks, follow_symlinks=False)
            place = os.open(name, _PLACE, dir_fd=self._disks)
            tree = syscalls.clone_tree(place if source is None else source, recursive=False)
            if not attributes & syscalls.MOUNT_ATTR_NODEV:
                syscalls.clear_attributes(tree, syscalls.MOUNT_ATTR_NODEV)
            syscalls.set_attributes(tree, attributes, recursive=False, propagation=syscalls.MS_PRIVATE)
            syscalls.attach_tree(tree, place)
        except OSError:
            os.unlink(name, dir_fd=self._disks)
            raise
        finally:
            for descriptor in (place, tree):
                if descriptor >= 0:
                    os.close(descriptor)
        path = os.path.join(self.disks_path, name)
        self.shown.add(path)
        return path

    def hide_disk(self, name: str) -> None:
        """Take a disk away from the VMM, which may still have it open; nothing for an unknown one."""
        path = os.path.join(self.disks_path, name)
        if path in self.shown:
            self.shown.remove(path)
            syscalls.unmount(path, lazy=True)
            os.unlink(name, dir_fd=self._disks)

    def close(self) -> None:
        """Detach both directories, and what is mounted there; idempotent."""
        if self._disks >= 0:
            os.close(self._disks)
            self._disks = -1
        while self._mounted:
            syscalls.unmount(self._mounted.pop(), lazy=True)
