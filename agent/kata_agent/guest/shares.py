"""The file system that is shared with the host: what of it the guest still knows, and safe ways into it.

At its top the host makes a directory for each container and each volume, which no guest may write to. What is
mounted in it on the host is a mount of its own in the guest, which the kernel makes when somebody comes by
(an automount), and keeps until its place is seen to be gone. One that is made in a container's mount
namespace is that container's alone, and another one has files of its own: so they are made here first.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from typing import Any

from kata_agent.constants import MOUNTS_ANNOTATION
from kata_agent.guest import mounts
from kata_agent.guest.errors import InvalidRequestError

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_LAST = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 2
"""Names to what the host mounts in the shared directory: <container>/rootfs, .volumes/<number>."""


class SharedFiles:
    """What containers have of the shared directory, and of the pod's volumes in memory.

    directory: the shared one. memory: where a tmpfs is mounted for each volume in memory. scratch: where
    places in volumes are bound, for one container each.
    """

    def __init__(self, directory: str, memory: str, scratch: str) -> None:
        self._prefix = f"{directory}/"
        self._memory = f"{memory}/"
        self._scratch = scratch
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._bound: dict[str, list[str]] = {}

    def prepare(self, cid: str, spec: dict[str, Any]) -> None:
        """Take note of what a container uses; bind for it what lies in a volume, and name that in its spec.

        Containers that have the volume may write there: a symbolic link would lead to what this one was not
        given, so none is followed. What the host has mounted itself is named by the container's runtime.

        Raises:
            InvalidRequestError: a link is in the way. OSError: it is not there any more. `release` undoes it.
        """
        self._mount_below((spec.get("annotations") or {}).pop(MOUNTS_ANNOTATION, "[]"))
        self.know(str(spec.get("root", {}).get("path", "")))
        for index, mount in enumerate(spec.get("mounts", ())):
            source = str(mount.get("source", ""))
            if self.know(source) > _DEPTH or self._is_in_memory(source):
                target = f"{self._scratch}/{cid}/{index}"
                with self._lock:
                    self._bound.setdefault(cid, []).append(target)
                self._bind(source, target)
                mount["source"] = target

    def know(self, path: str) -> int:
        """Note a path's way from the shared directory; returns how many names that is, 0 for others."""
        if not path.startswith(self._prefix):
            return 0
        names = path.removeprefix(self._prefix).split("/")
        with self._lock:
            self._known.add("/".join(names[:_DEPTH]))
        try:
            os.close(os.open(self._prefix + "/".join(names[:_DEPTH]), _STEP))
        except OSError:
            pass  # a file, which is no mount of its own; or nothing, of which crun will complain
        return len(names)

    def _mount_below(self, named: str) -> None:
        """Have the kernel make the mounts below volumes: here, so that they are the same ones for everybody.

        One that is made when a container comes by has the flags of the mount that it is found in, and is
        read-only where only that is to be.
        """
        for path in json.loads(named):
            at = os.open(self._prefix, _STEP)
            try:
                for name in str(path).removeprefix(self._prefix).split("/"):
                    inner = os.open(name, _STEP, dir_fd=at)
                    os.close(at)
                    at = inner
            except OSError:
                pass  # a file; or a container has put something else in its place, and gets nothing
            finally:
                os.close(at)

    def _is_in_memory(self, source: str) -> bool:
        """Whether a path is of a part of a volume in memory."""
        return source.startswith(self._memory) and "/" in source.removeprefix(self._memory)

    def _bind(self, source: str, target: str) -> None:
        found = self._open(source)
        try:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            if stat.S_ISDIR(os.fstat(found).st_mode):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            mounts.bind(f"/proc/self/fd/{found}", target)
        finally:
            os.close(found)

    def _open(self, source: str) -> int:
        in_memory = source.startswith(self._memory)
        top = self._memory if in_memory else self._prefix
        *above, last = source.removeprefix(top).split("/")
        if any(name in ("", ".", "..") for name in (*above, last)):
            raise InvalidRequestError(f"{source!r} is not a plain path")
        at = os.open(top, _STEP)
        try:
            for name in above:
                if in_memory:
                    _make_like(at, name)
                inner = os.open(name, _STEP, dir_fd=at)
                os.close(at)
                at = inner
            if in_memory:
                _make_like(at, last)
            found = os.open(last, _LAST, dir_fd=at)
        except NotADirectoryError:  # what O_DIRECTORY and O_NOFOLLOW say of a symbolic link too
            raise InvalidRequestError(f"{source!r} leads through a symbolic link") from None
        finally:
            os.close(at)
        if stat.S_ISLNK(os.fstat(found).st_mode):
            os.close(found)
            raise InvalidRequestError(f"{source!r} is a symbolic link")
        return found

    def release(self, cid: str) -> None:
        """Undo what was bound for a container. Raises OSError."""
        with self._lock:
            targets = self._bound.pop(cid, [])
        for target in targets:
            mounts.detach(target)
            if os.path.isdir(target):
                os.rmdir(target)
            elif os.path.exists(target):
                os.unlink(target)
        if targets and os.path.isdir(os.path.dirname(targets[0])):
            os.rmdir(os.path.dirname(targets[0]))

    def forget_removed(self) -> None:
        """Let go of what the host has taken away since it was used.

        As long as the kernel remembers a file, the host's server of files holds it open, and with it the
        space of a file that was deleted. What a name leads to is asked of the host again, however long an
        answer may be believed otherwise, by a call that must be sure that nothing is there (LOOKUP_EXCL). A
        name that leads elsewhere takes along all that was known below it: files, and the mounts on them.
        """
        with self._lock:
            known = sorted(self._known)
        for path in known:
            at = self._prefix.rstrip("/")
            for name in path.split("/"):
                at = f"{at}/{name}"
                if not _is_there(at):
                    with self._lock:
                        self._known.discard(path)
                    break


def _make_like(directory: int, name: str) -> None:
    """Make a directory that is missing, with the mode and owner of the one that it is in.

    So a kubelet makes what a subPath names, in the memory of the host.
    """
    like = os.fstat(directory)
    try:
        os.mkdir(name, dir_fd=directory)
    except FileExistsError:
        return
    made = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fchown(made, like.st_uid, like.st_gid)
        os.fchmod(made, stat.S_IMODE(like.st_mode))
    finally:
        os.close(made)


def _is_there(path: str) -> bool:
    try:
        os.mkdir(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.EROFS)
    os.rmdir(path)  # where the host lets the guest make one
    return False
