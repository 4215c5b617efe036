"""The files of a sandbox: what is made, mounted and shared for its containers, written down before it is.

Every method raises RequestRefusedError for what lies outside of the sandbox or is not authorized, and OSError
or RequestFailedError when the host could not do it.
"""

from __future__ import annotations

import os
import stat

from kata_runtime import syscalls
from kata_runtime.broker import mounts
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.authorization import Authorization
    from kata_runtime.broker.path_scope import Place
    from kata_runtime.broker.sandbox_directory import SandboxDirectory


MAX_STACKED = 17
"""Mounts on one place: those of a root file system, and a view on top of them."""


class Files:
    """What one broker has made of files; its rollback journal remembers it."""

    def __init__(self, directory: SandboxDirectory, authorization: Authorization) -> None:
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
        find = self._authorization.finder("bind" if options.bind is not None else kind, source, options.own)
        with self._directory.scope.reach(target) as place:
            number = self._journal.push("unmount", path=target)
            try:
                mounts.mount(kind, source, options, place, self._directory.origin, find)
            except BaseException:
                self._journal.drop(number)
                raise

    def cover(self, target: str) -> None:
        """Put a view of what is mounted there on top: read-only, without devices, no link in it is followed.

        A program of ours reads it next, with our rights, and a guest may write to the files at the same time.
        """
        if not self._journal.find("unmount", target):
            raise RequestRefusedError(f"{target} was not mounted by this broker")
        self._check_free(target, 1)
        attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSYMFOLLOW
        with self._directory.scope.reach(target) as place:
            mounted = place.open()
            try:
                tree = syscalls.clone_tree(mounted, recursive=True)
            finally:
                os.close(mounted)
            try:
                self._attach(tree, f"a view of {target}", place, attributes, recursive=True)
            finally:
                os.close(tree)

    def bind(self, source: str, target: str, *, readonly: bool, recursive: bool) -> None:
        """Share a file or directory of the host; the target is made to match it."""
        self._authorization.check_bind(source)
        self._check_free(target, 1)
        try:
            tree = self._directory.origin.take(source, recursive=recursive)
        except OSError as error:
            raise RequestFailedError(f"cannot share {source}: {error.strerror}", error.errno or 0) from None
        try:
            self._make(target, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
            with self._directory.scope.reach(target) as place:
                attributes = syscalls.MOUNT_ATTR_RDONLY if readonly else 0
                self._attach(tree, source, place, attributes, recursive=recursive)
        finally:
            os.close(tree)

    def _attach(self, tree: int, source: str, place: Place, attributes: int, *, recursive: bool) -> None:
        number = self._journal.push("unmount", path=place.path)
        try:
            mounts.bind(tree, place, attributes, recursive=recursive)
        except OSError as error:
            self._journal.drop(number)
            raise RequestFailedError(
                f"cannot share {source} as {place.path}: {error.strerror}", error.errno or 0
            ) from None

    def unmount(self, target: str) -> None:
        """Undo what `mount` and `bind` have stacked there."""
        if not (entries := self._journal.find("unmount", target)):
            raise RequestRefusedError(f"{target} was not mounted by this broker")
        for _ in entries:
            self._unmount_one(target)

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
