"""Images of containers: files in them, and read-only images made of their root file systems.

An image is made and opened after the seal too, when the shim may be a guest's. So the broker says what is
run, and the shim only for which of its own mounts; and it opens no path, but a name: the hash of all that is
in the image (`rootfs_image.py`), which nobody knows who does not know the content.
"""

from __future__ import annotations

import os
import stat
import sys

from kata_runtime import syscalls
from kata_runtime.broker import image_cache
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.children import Children
    from kata_runtime.broker.files import Files
    from kata_runtime.broker.sandbox_directory import SandboxDirectory
    from kata_runtime.broker.vmm_directory import VmmDirectory

PROGRAM = os.path.join(os.path.dirname(__file__), "rootfs_image.py")
MAX_MAKERS = 4
"""Images that are made for one sandbox at a time: each takes room in the cache before it is counted there."""
_VIEW = 3
_FILE = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Images:
    """What one sandbox may have of images."""

    def __init__(
        self, directory: SandboxDirectory, files: Files, children: Children, vmm: VmmDirectory
    ) -> None:
        self._vmm = vmm
        self._directory = directory
        self._files = files
        self._children = children

    def open_file(self, root: str, name: str, *, write: bool) -> int:
        """Open a file in what was mounted at `root`; see `open_in_image`."""
        with self._directory.scope.reach(root) as place:
            mount = place.open()
        try:
            file = open_in_image(mount, name, write=write)
        finally:
            os.close(mount)
        if write or not stat.S_ISREG(os.fstat(file).st_mode):
            return file
        return self._directory.origin.give_read_only(file)

    def make(self, root: str) -> tuple[int, int]:
        """Start the program that makes an image of what is mounted at `root`.

        Returns its pid, and a descriptor of its output that does not block.

        Raises:
            RequestRefusedError: nothing was mounted there, or enough images are being made.
            RequestFailedError: it cannot be started.
        """
        if self._children.count(image_cache.ROLE) >= MAX_MAKERS:
            raise RequestRefusedError(
                f"cannot make an image of {root}: {MAX_MAKERS} images are being made for this sandbox; try "
                "again when one of them is finished"
            )
        view = self._files.cover(root)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(reader, False)
            argv = [sys.executable, "-IS", PROGRAM, root, str(_VIEW), image_cache.CACHE]
            pid = self._children.start(image_cache.ROLE, argv, {_VIEW: view, 1: writer, 2: writer})
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(view)
            os.close(writer)
        return pid, reader

    def open(self, name: str) -> tuple[int, int]:
        """Open an image to read; return the descriptor and the size in bytes. Raises RequestFailedError."""
        path = os.path.join(image_cache.CACHE, name + image_cache.SUFFIX)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise RequestFailedError(f"cannot open {path}: {error.strerror}", error.errno or 0) from None
        return fd, os.fstat(fd).st_size

    def show(self, disk: str, name: str) -> str:
        """Let the VMM see an image under a disk's name; return the path. Raises as `open`, and OSError."""
        image, _ = self.open(name)
        try:
            return self._vmm.show_disk(disk, image)
        finally:
            os.close(image)


def open_in_image(root: int, name: str, *, write: bool) -> int:
    """Open a regular file or block device below a directory, whatever links the image has.

    Raises:
        RequestFailedError: it cannot be opened. RequestRefusedError: it is something else.
    """
    try:
        fd = syscalls.open_in_root(root, name, _FILE | (os.O_RDWR if write else os.O_RDONLY))
    except OSError as error:
        raise RequestFailedError(
            f"cannot open {name} in the image: {error.strerror}", error.errno or 0
        ) from None
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        os.close(fd)
        raise RequestRefusedError(f"{name} in the image is neither a regular file nor a block device")
    return fd
