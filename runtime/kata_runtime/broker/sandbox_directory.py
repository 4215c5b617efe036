"""What a broker works on: the sandbox's directory, locked; the mount namespace; and the rollback journal.

A VMM's jail, where one is asked for, is a tmpfs of the namespace too: <directory>/jail.

In the namespace, <directory>/shared is a small tmpfs twice over: the broker makes its directories and mounts
in the lower one, and what virtiofsd serves is the upper one, the same tree read-only. So a guest can write to
what was mounted for it and to nothing else, cannot fill the host's /run, and cannot plant a link in the
broker's way. What is made in it ends with the namespace.
"""

from __future__ import annotations

import errno
import os

from kata_runtime import syscalls
from kata_runtime.broker import cleanup, processes
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.origin import Origin
from kata_runtime.broker.path_scope import PathScope
from kata_runtime.broker.rollback import RollbackJournal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kata_runtime.identity import SandboxIdentity

_TMPFS_OPTIONS = "mode=0755,size=4m,nr_inodes=65536"
# Programs and devices are allowed: a jailer copies its program there and makes the devices for it.
_JAIL_OPTIONS = "mode=0755,size=128m,nr_inodes=1024"
_HOLD = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class SandboxDirectory:
    """One sandbox's directory, locked and ready. Raises OSError or BrokerError when it cannot be had.

    descriptor: of the directory. journal: the rollback journal. scope: where the sandbox may make and mount.
    """

    def __init__(self, identity: SandboxIdentity, bundle: str, shim: int, *, namespace: bool) -> None:
        self._path = identity.directory
        self._namespace = namespace
        self._jailed = False
        self.origin = Origin.leave() if namespace else Origin(None)
        self.descriptor = _take(self._path)
        if left := _roll_back_predecessor(self.descriptor, self._path):
            raise RequestFailedError(f"an earlier sandbox of this name cannot be undone: {left[0]}")
        self.journal = RollbackJournal.create(
            self.descriptor,
            {
                "sandbox": identity.id,
                "owner": identity.namespace,
                "broker": [os.getpid(), processes.start_time(os.getpid())],
                "shim": [shim, processes.start_time(shim)],
                "namespace": cleanup.mount_namespace(),
                "bundle": bundle,
                "socket": identity.socket,
            },
        )
        shared = os.path.join(self._path, "shared")
        self.scope = PathScope(shared, self._share(shared), bundle, os.open(bundle, _HOLD))

    @property
    def has_namespace(self) -> bool:
        """Whether the broker has a mount namespace of its own."""
        return self._namespace

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

    def make_jail(self, root: str, files: dict[str, str]) -> None:
        """Make a root directory below <directory>/jail, with read-only views of files of the host; once.

        Later the jail belongs to the program in it, which may plant links there.

        Raises:
            RequestRefusedError: it is somewhere else, or there is one already.
            RequestFailedError: the host cannot do it.
        """
        jail = os.path.join(self._path, "jail")
        names = root.removeprefix(jail + "/").split("/")
        if not root.startswith(jail + "/") or any(name in ("", ".", "..") for name in names):
            raise RequestRefusedError(f"{root} is not below {jail}")
        if self._jailed or not self._namespace:
            raise RequestRefusedError("the sandbox has its jail already, or no mount namespace for one")
        self._jailed = True
        try:
            os.mkdir(jail, 0o700)
            syscalls.mount("kata-jail", jail, "tmpfs", syscalls.MS_NOSUID, _JAIL_OPTIONS)
            os.makedirs(root, 0o755)
            for name, source in files.items():
                self._show(source, os.path.join(root, name))
        except OSError as error:
            raise RequestFailedError(
                f"cannot make the jail {root}: {error.filename or ''} {error.strerror}", error.errno or 0
            ) from None

    def _show(self, source: str, target: str) -> None:
        """Put a read-only view of a file of the host on a new file."""
        tree = self.origin.take(source, recursive=False)
        try:
            place = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
            try:
                attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOEXEC
                syscalls.set_attributes(tree, attributes, recursive=False, propagation=syscalls.MS_PRIVATE)
                syscalls.attach_tree(tree, place)
            finally:
                os.close(place)
        finally:
            os.close(tree)

    def roll_back(self, spared: Collection[int], kept: Sequence[str]) -> list[str]:
        """Undo everything and remove the directory; returns a line for each thing that is left.

        kept: lines about what must be left, in a directory that stays for it.
        """
        left = [*kept, *cleanup.roll_back(self.journal, self.scope, spared, mounted=True)]
        self.scope.close()
        self.origin.close()
        if self._namespace:
            self._unshare_directory()
        if self._jailed:
            self._leave_jail()
        if not left:
            left = cleanup.clear(self.descriptor, self._path)
        self.journal.close()
        os.close(self.descriptor)
        return left

    def _unshare_directory(self) -> None:
        """Detach the shared directory's mounts, and with them whatever would not be unmounted below."""
        while True:
            try:
                syscalls.unmount(self.scope.shared, lazy=True)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return

    def _leave_jail(self) -> None:
        """Detach the jail's file system, and what is mounted in it."""
        try:
            syscalls.unmount(os.path.join(self._path, "jail"), lazy=True)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise


def _take(path: str) -> int:
    """Make the sandbox's directory unless it is there, and lock it; returns its descriptor."""
    while True:
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not cleanup.lock(directory, cleanup.LOCK_TIMEOUT):
            os.close(directory)
            raise RequestFailedError(
                f"{path} is in use: another shim serves this sandbox, or is being cleaned up"
            )
        if os.fstat(directory).st_uid != os.geteuid() or os.fstat(directory).st_mode & 0o077:
            os.close(directory)
            raise RequestFailedError(f"{path} is not private: it must be ours, with mode 0700")
        if os.fstat(directory).st_nlink:
            return directory
        os.close(directory)  # a cleanup removed it while we waited for the lock


def _roll_back_predecessor(directory: int, path: str) -> list[str]:
    """Undo what a killed broker of the same name left; the files may be our shim's by now, and stay."""
    journal = RollbackJournal.load(directory)
    return [] if journal is None else cleanup.roll_back_dead(journal, path)
