"""What a broker works on: the sandbox's directory and its lock, the mount namespace, and the undo stack.

In the namespace, <directory>/shared is a small tmpfs twice over: the broker makes its directories and mounts
in the lower one, and what virtiofsd serves is the upper one, the same tree read-only. So a guest can write to
what was mounted for it and to nothing else, cannot fill the host's /run, and cannot plant a link in the
broker's way. What is made in it ends with the namespace.
"""

from __future__ import annotations

import errno
import os

from kata_runtime.broker import janitor, processes, syscalls
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.origin import Origin
from kata_runtime.broker.territory import Territory
from kata_runtime.broker.undo import UndoLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from kata_runtime.identity import SandboxIdentity

_TMPFS_OPTIONS = "mode=0755,size=4m,nr_inodes=65536"
_HOLD = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workspace:
    """One sandbox's directory, locked and ready. Raises OSError or BrokerError when it cannot be had.

    directory: descriptor of it. log: the undo stack. territory: where the sandbox may make and mount.
    """

    def __init__(self, identity: SandboxIdentity, bundle: str, shim: int, *, namespace: bool) -> None:
        self._path = identity.directory
        self._namespace = namespace
        self.origin = Origin.leave() if namespace else Origin(None)
        self.directory = _take(self._path)
        if left := _undo_predecessor(self.directory, self._path):
            raise RequestFailedError(f"an earlier sandbox of this name cannot be undone: {left[0]}")
        self.log = UndoLog.create(
            self.directory,
            {
                "sandbox": identity.id,
                "owner": identity.namespace,
                "broker": [os.getpid(), processes.start_time(os.getpid())],
                "shim": [shim, processes.start_time(shim)],
                "namespace": janitor.mount_namespace(),
                "bundle": bundle,
                "socket": identity.socket,
            },
        )
        shared = os.path.join(self._path, "shared")
        self.territory = Territory(shared, self._share(shared), bundle, os.open(bundle, _HOLD))

    def _share(self, shared: str) -> int:
        """Make the shared directory, mount it, and return the descriptor of the tree that may be written."""
        try:
            os.mkdir(shared, 0o755)
        except FileExistsError:
            pass
        if not self._namespace:
            return os.open(shared, _HOLD)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("kata-shared", shared, "tmpfs", flags, _TMPFS_OPTIONS)
        writable = os.open(shared, _HOLD)
        served = syscalls.clone_tree(writable, recursive=False)
        try:
            syscalls.set_attributes(served, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
            syscalls.attach_tree(served, writable)
        finally:
            os.close(served)
        return writable

    def undo(self, spared: Collection[int]) -> list[str]:
        """Undo everything and remove the directory; returns a line for each thing that is left."""
        left = janitor.replay(self.log, self.territory, spared, mounted=True)
        self.territory.close()
        self.origin.close()
        if self._namespace:
            self._unshare_directory()
        if not left:
            left = janitor.clear(self.directory, self._path)
        self.log.close()
        os.close(self.directory)
        return left

    def _unshare_directory(self) -> None:
        """Detach the shared directory's mounts, and with them whatever would not be unmounted below."""
        while True:
            try:
                syscalls.unmount(self.territory.shared, lazy=True)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return


def _take(path: str) -> int:
    """Make the sandbox's directory unless it is there, and lock it; returns its descriptor."""
    while True:
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not janitor.lock(directory, janitor.PATIENCE):
            os.close(directory)
            raise RequestFailedError(
                f"{path} is in use: another shim serves this sandbox, or is being cleaned up"
            )
        if os.fstat(directory).st_uid != os.geteuid() or os.fstat(directory).st_mode & 0o077:
            os.close(directory)
            raise RequestFailedError(f"{path} is not private: it must be ours, with mode 0700")
        if os.fstat(directory).st_nlink:
            return directory
        os.close(directory)  # a janitor removed it while we waited for the lock


def _undo_predecessor(directory: int, path: str) -> list[str]:
    """Undo what a killed broker of the same name left; the files may be our shim's by now, and stay."""
    log = UndoLog.load(directory)
    if log is None:
        return []
    return janitor.undo_dead(log, path)
