"""Where the broker may make, mount and remove: below the sandbox's shared directory and in its bundle's
rootfs.

A path is reached component by component from a descriptor, never through a link and never across a mount:
what a user or a guest may write is always behind a mount, so nothing of it is ever a step of a path here.
"""

from __future__ import annotations

import errno
import os
import stat

from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class Place:
    """A name in a directory that belongs to the sandbox; the name itself may be missing, or a mount point."""

    __slots__ = ("name", "parent", "path")

    def __init__(self, path: str, parent: int, name: str) -> None:
        self.path = path
        self.parent = parent
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.parent)

    @property
    def handle(self) -> str:
        """A path for system calls that take no descriptor; its last component must not be followed."""
        return f"/proc/self/fd/{self.parent}/{self.name}"

    def type(self) -> int | None:
        """The file's type (S_IFDIR ...), or None when nothing is there."""
        try:
            return stat.S_IFMT(os.stat(self.name, dir_fd=self.parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return None

    def open(self) -> int:
        """Return a descriptor (O_PATH) of what is there: the mount's root when it is a mount point.

        Raises:
            RequestRefusedError: it is a symbolic link.
        """
        fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parent)
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            raise RequestRefusedError(f"{self.path} is a symbolic link: nothing is mounted through one")
        return fd

    def make(self, *, directory: bool) -> None:
        """Make an empty directory or file. Raises FileExistsError."""
        if directory:
            os.mkdir(self.name, 0o755, dir_fd=self.parent)
        else:
            os.close(
                os.open(
                    self.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=self.parent
                )
            )

    def remove(self) -> None:
        """Remove an empty directory, or a file; the kernel refuses what is a mount point."""
        if self.type() == stat.S_IFDIR:
            os.rmdir(self.name, dir_fd=self.parent)
        else:
            os.unlink(self.name, dir_fd=self.parent)


class PathScope:
    """The directories of one sandbox, each held by a descriptor.

    shared: <sandbox directory>/shared; everything below it. bundle: only "rootfs" in it, and what is below.
    A descriptor of -1 is a directory that does not exist.
    """

    def __init__(self, shared: str, shared_fd: int, bundle: str, bundle_fd: int) -> None:
        self._shared = shared
        self._roots: tuple[tuple[str, int, str | None], ...] = (
            (shared, shared_fd, None),
            (bundle, bundle_fd, "rootfs"),
        )

    @property
    def bundle_exists(self) -> bool:
        """Whether the bundle is still there; asked of its descriptor, which may have no other left."""
        descriptor = self._roots[1][1]
        return descriptor >= 0 and os.fstat(descriptor).st_nlink > 0

    def is_root(self, path: str) -> bool:
        """Whether the path is the shared directory or the bundle itself: both exist, neither is a place."""
        return any(path == root for root, _, _ in self._roots)

    @property
    def shared(self) -> str:
        """Path of the shared directory."""
        return self._shared

    def close(self) -> None:
        """Let go of the directories; idempotent. Nothing can be reached afterwards."""
        for _, fd, _ in self._roots:
            if fd >= 0:
                os.close(fd)
        self._roots = ()

    def check(self, path: str) -> None:
        """Raise RequestRefusedError unless the path is below the sandbox's directories."""
        self._locate(path)

    def reach(self, path: str) -> Place:
        """Walk to the directory that holds a path's last component.

        Raises:
            RequestRefusedError: the path is not below the sandbox's directories, or leads through a link or a
            mount.
            FileNotFoundError: a directory on the way does not exist.
        """
        root, names = self._locate(path)
        if root < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        home = _mount_id(root)
        parent = os.dup(root)
        try:
            for name in names[:-1]:
                try:
                    step = os.open(name, _STEP, dir_fd=parent)
                except NotADirectoryError:
                    raise RequestRefusedError(
                        f"{path} leads through {name!r}, which is no directory"
                    ) from None
                os.close(parent)
                parent = step
                if _mount_id(parent) != home:
                    raise RequestRefusedError(
                        f"{path} leads into the mount at {name!r}, which is not the sandbox's own"
                    )
        except BaseException:
            os.close(parent)
            raise
        return Place(path, parent, names[-1])

    def _locate(self, path: str) -> tuple[int, list[str]]:
        for root, fd, only in self._roots:
            if path.startswith(root + "/"):
                names = path[len(root) + 1 :].split("/")
                if only is not None and names[0] != only:
                    continue
                if not any(name in ("", ".", "..") for name in names):
                    return fd, names
        raise RequestRefusedError(
            f"{path} is not below the sandbox's shared directory or its bundle's rootfs"
        )


def _mount_id(fd: int) -> int:
    """The id of a descriptor's mount (proc_pid_fdinfo(5)); bind mounts of one device differ in it."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(f"/proc/self/fdinfo/{fd} names no mount")
