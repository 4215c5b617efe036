"""The files of a sandbox: what is made, mounted and shared for its containers, written down before it is.

Every method raises RequestRefusedError for what lies outside of the sandbox or is not authorized, and OSError
or RequestFailedError when the host could not do it.
"""

from __future__ import annotations

import os
import stat

from kata_runtime import syscalls
from kata_runtime.broker import claims, mount_policy, mounts
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.identity import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from kata_runtime.broker.authorization import Authorization
    from kata_runtime.broker.path_scope import Place
    from kata_runtime.broker.sandbox_directory import SandboxDirectory
    from kata_runtime.identity import SandboxIdentity


WRITTEN = "written"
"""In the runtime's state directory: a file for each directory of a snapshot that a sandbox writes to."""

MAX_STACKED = 17
"""Mounts on one place: those of a root file system, and a view on top of them."""


class Files:
    """What one broker has made of files; its rollback journal remembers it."""

    def __init__(
        self, identity: SandboxIdentity, directory: SandboxDirectory, authorization: Authorization
    ) -> None:
        self._identity = identity
        self._directory = directory
        self._authorization = authorization
        self._journal = directory.journal

    def make_directory(self, path: str) -> None:
        """Make a directory, and those above it; one that is there already is left."""
        self._make(path, directory=True)

    def _make(self, path: str, *, directory: bool) -> None:
        """Make a directory or a file, and what is missing on the way; what is there already is left."""
        if self._directory.scope.is_root(path):
            return
        self._directory.scope.check(path)
        self._make(os.path.dirname(path), directory=True)
        with self._directory.scope.reach(path) as place:
            if (kind := place.type()) is None:
                number = self._journal.push("remove", path=path)
                try:
                    place.make(directory=directory)
                except OSError:
                    self._journal.drop(number)
                    raise
            elif kind == stat.S_IFLNK or (kind == stat.S_IFDIR) != directory:
                raise RequestRefusedError(
                    f"{path} is there already, and is no {'directory' if directory else 'file'}"
                )

    def mount(self, target: str, wanted: list[list[Any]]) -> None:
        """Mount all of [type, source, options], the later on top, or none."""
        self._check_free(target, len(wanted))
        self._make(target, directory=True)
        made = 0
        try:
            for kind, source, options in wanted:
                self._mount_one(target, kind, source, options)
                made += 1
        except BaseException:
            for _ in range(made):
                self._unmount_one(target)
            raise

    def _check_free(self, target: str, wanted: int) -> None:
        """Refuse a pile of mounts on one place, each of which costs the host's kernel memory."""
        if len(self._journal.find("unmount", target)) + wanted > MAX_STACKED:
            raise RequestRefusedError(f"cannot mount on {target}: it has {MAX_STACKED} mounts at most")

    def _mount_one(self, target: str, kind: str, source: str, given: list[str]) -> None:
        options = mounts.parse_options(given)
        known, writable = "bind" if options.bind is not None else kind, not options.flags & syscalls.MS_RDONLY
        find = self._authorization.finder(known, source, options.own, writable=writable)
        written = mount_policy.claimed(known, source, options.own, writable=writable)
        if find is None:
            self._claim(written)
        else:
            find = self._claiming(find, written)
        with self._directory.scope.reach(target) as place:
            number = self._journal.push("unmount", path=target)
            try:
                mounts.mount(kind, source, options, place, self._directory.origin, find)
            except BaseException:
                self._journal.drop(number)
                raise

    def _claim(self, written: Collection[str]) -> None:
        """Take directories for this sandbox alone. Raises RequestRefusedError: another has one."""
        for path in written:
            file = os.path.join(os.path.dirname(self._identity.directory), WRITTEN, digest(os.fsencode(path)))
            if not claims.take(file, self._identity.key, self._journal):
                raise RequestRefusedError(
                    f"cannot mount {path} to be written: another sandbox has it mounted, and two that write "
                    "to it would share their files"
                )

    def _claiming(self, find: Callable[[str], int], written: Collection[str]) -> Callable[[str], int]:
        """The same way to find paths, which takes those that are written to once they were found."""

        def found(path: str) -> int:
            descriptor = find(path)
            try:
                self._claim({os.path.realpath(path)} & set(written))
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

        return found

    def cover(self, target: str) -> int:
        """Put a view of what is mounted there on top: read-only, without devices, no link in it is followed.

        A program of ours reads it next, with our rights, and a guest may write to the files at the same time.
        Returns a descriptor of the view, the caller's to close: a shim that a guest owns may unmount the view
        before it is read, and mount something else in its place.
        """
        self._own_mounts(target)
        self._check_free(target, 1)
        attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSYMFOLLOW
        with self._directory.scope.reach(target) as place:
            tree = _copy(place, recursive=True)
            try:
                self._attach(tree, f"a view of {target}", place, attributes, recursive=True)
            except BaseException:
                os.close(tree)
                raise
        return tree

    def show(self, target: str, process: int) -> None:
        """Make what is mounted there the root of a process that has a mount namespace of its own.

        For clients that copy a container's files by /proc/PID/root. They look where a path leads, and then go
        there: a link that a guest puts there in between would lead through the host, so none is followed.
        """
        self._own_mounts(target)
        with self._directory.scope.reach(target) as place:
            tree = _copy(place, recursive=False)
        try:
            attributes = syscalls.MOUNT_ATTR_NOSYMFOLLOW
            syscalls.set_attributes(tree, attributes, recursive=False, propagation=syscalls.MS_PRIVATE)
            namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._directory.origin.visit(namespace, lambda: syscalls.replace_root(tree))
            finally:
                os.close(namespace)
        except OSError as error:
            raise RequestFailedError(f"cannot show {target}: {error.strerror}", error.errno or 0) from None
        finally:
            os.close(tree)

    def bind(self, source: str, target: str, *, readonly: bool, recursive: bool) -> None:
        """Share a file or directory of the host; the target is made to match it."""
        find = self._authorization.source_finder(
            source, readonly=readonly, recursive=recursive, readonly_below=readonly
        )
        how = {"find": find} if find else {}
        try:
            tree = self._directory.origin.take(source, recursive=recursive, **how)
        except OSError as error:
            raise RequestFailedError(f"cannot share {source}: {error.strerror}", error.errno or 0) from None
        try:
            self.attach(tree, source, target, readonly=readonly, recursive=recursive, readonly_below=readonly)
        finally:
            os.close(tree)

    def attach(
        self, tree: int, source: str, target: str, *, readonly: bool, recursive: bool, readonly_below: bool
    ) -> None:
        """Put a detached copy of a source's mount on a target, which is made to match it.

        Raises:
            RequestRefusedError: the source is a device. RequestFailedError: it cannot be mounted.
        """
        mode = os.fstat(tree).st_mode
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            raise RequestRefusedError(
                f"cannot share {source}: it is a device of the host, which no guest reaches; leave it out"
            )
        self._check_free(target, 1)
        self._make(target, directory=stat.S_ISDIR(mode))
        with self._directory.scope.reach(target) as place:
            attributes = syscalls.MOUNT_ATTR_RDONLY if readonly_below else 0
            top = syscalls.MOUNT_ATTR_RDONLY if readonly else 0
            self._attach(tree, source, place, attributes, recursive=recursive, top=top)

    def _attach(
        self, tree: int, source: str, place: Place, attributes: int, *, recursive: bool, top: int = 0
    ) -> None:
        number = self._journal.push("unmount", path=place.path)
        try:
            mounts.bind(tree, place, attributes, recursive=recursive, top=top)
        except OSError as error:
            self._journal.drop(number)
            raise RequestFailedError(
                f"cannot share {source} as {place.path}: {error.strerror}", error.errno or 0
            ) from None

    def unmount(self, target: str) -> None:
        """Undo what `mount` and `bind` have stacked there."""
        for _ in self._own_mounts(target):
            self._unmount_one(target)

    def _own_mounts(self, target: str) -> list[int]:
        """Entries of what is stacked there. Raises RequestRefusedError where this broker mounted nothing."""
        if not (entries := self._journal.find("unmount", target)):
            raise RequestRefusedError(f"{target} was not mounted by this broker")
        return entries

    def _unmount_one(self, target: str) -> None:
        number = self._journal.find("unmount", target)[-1]
        with self._directory.scope.reach(target) as place:
            mounts.unmount(place)
        self._journal.drop(number)

    def remove(self, path: str) -> None:
        """Remove what was made here: an empty directory, or a file."""
        if not (entries := self._journal.find("remove", path)):
            raise RequestRefusedError(f"{path} was not made by this broker")
        with self._directory.scope.reach(path) as place:
            place.remove()
        self._journal.drop(entries[-1])


def _copy(place: Place, *, recursive: bool) -> int:
    """A detached copy of what is mounted there; the caller's to close."""
    mounted = place.open()
    try:
        return syscalls.clone_tree(mounted, recursive=recursive)
    finally:
        os.close(mounted)
