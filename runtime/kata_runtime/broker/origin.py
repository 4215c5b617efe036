"""Where the sources of mounts are looked up: the mount namespace that the broker came from, containerd's.

The broker's own receives what is mounted there later only where the host shares its mounts, as systemd has
it and a container or a plain init does not. A volume that is mounted after the pod's start would be found
empty.
"""

from __future__ import annotations

import os

from kata_runtime import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Opens a path (O_PATH); the descriptor is the caller's. Raises OSError.
    Find = Callable[[str], int]


_DEVICES = "/dev"


def find(path: str) -> int:
    """Open a path as anybody would, links followed. Raises OSError."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


class Origin:
    """Two mount namespaces: that of the sources, and the broker's. None: there is but one."""

    def __init__(self, namespaces: tuple[int, int] | None) -> None:
        """namespaces: descriptors of the two, which are this object's from here on."""
        self._namespaces = namespaces

    @classmethod
    def leave(cls) -> Origin:
        """Enter a mount namespace of our own, in which no node of /dev can be changed. Raises OSError."""
        host = _current()
        syscalls.unshare_mounts()
        _freeze_devices()
        return cls((host, _current()))

    def take(self, source: str, *, recursive: bool, find: Find = find) -> int:
        """Return a descriptor of a detached copy of what is at a path. Raises OSError."""
        if self._namespaces is None:
            return _clone(find(source), recursive=recursive)
        host, own = self._namespaces
        syscalls.enter_mounts(host)
        try:
            return _clone(find(source), recursive=recursive)
        finally:
            syscalls.enter_mounts(own)

    def visit(self, namespace: int, action: Callable[[], None]) -> None:
        """Act in another mount namespace, by a descriptor of it. Raises OSError."""
        if self._namespaces is None:
            return
        syscalls.enter_mounts(namespace)
        try:
            action()
        finally:
            syscalls.enter_mounts(self._namespaces[1])

    def give_read_only(self, file: int) -> int:
        """What of a file of the broker's namespace is given away: nobody can write by it. Takes `file`.

        Raises:
            OSError: there is no such descriptor to be had.
        """
        if self._namespaces is None:
            return file
        try:
            return syscalls.open_read_only(file)
        finally:
            os.close(file)

    def enter_host(self) -> None:
        """Enter the mount namespace of the sources, for ever. Raises OSError."""
        if self._namespaces is not None:
            syscalls.enter_mounts(self._namespaces[0])

    def close(self) -> None:
        """Close the descriptors."""
        for namespace in self._namespaces or ():
            os.close(namespace)
        self._namespaces = None


def _freeze_devices() -> None:
    """Make the mount of /dev read-only, whose devices can be written all the same.

    Children get descriptors of devices, if only /dev/null as a standard stream. By such a one virtiofsd,
    which is root of the host's own users, could change the mode and owner of the host's node.
    """
    place = os.open(_DEVICES, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not os.path.ismount(_DEVICES):
            tree = syscalls.clone_tree(place, recursive=True)
            syscalls.attach_tree(tree, place)
            os.close(place)
            place = tree
        syscalls.set_attributes(place, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    finally:
        os.close(place)


def _current() -> int:
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def _clone(place: int, *, recursive: bool) -> int:
    try:
        return syscalls.clone_tree(place, recursive=recursive)
    finally:
        os.close(place)
