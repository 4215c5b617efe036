"""The volumes of a sandbox: each source of the host is shared once, for all containers that name it.

The guest sees a mount of the host as a file system of its own. Two mounts of one directory would be two file
systems to it, with two inodes for each file: no socket between containers, no lock, no shared memory. So what
is shared is known by what it is (`source_facts`), and counted. A source that lies in one that is shared
already is a path in there.

A container that may only read gets a read-only mount of the guest's; the host's is read-only as long as every
container of the pod that names it says so.
"""

from __future__ import annotations

import errno
import os
import stat

from kata_runtime import direct_volumes, syscalls
from kata_runtime.broker import source_facts
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.shared_source import SharedSource, forbidden
from kata_runtime.direct_volumes import DirectVolumeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from kata_runtime.broker.authorization import Authorization
    from kata_runtime.broker.files import Files
    from kata_runtime.broker.sandbox_directory import SandboxDirectory
    from kata_runtime.broker.source_facts import SourceFacts


DIRECTORY = ".volumes"
"""Where they are below the shared directory, beside those of containers: no id of one begins with a dot."""


_ENDPOINTS = {stat.S_IFSOCK: "a Unix socket", stat.S_IFIFO: "a FIFO"}


class _Volume:
    """A source that is shared. place: below the shared directory. users: how many shares stand for it."""

    __slots__ = ("facts", "place", "readonly", "readonly_below", "users")

    def __init__(self, facts: SourceFacts, place: str, *, readonly: bool, readonly_below: bool) -> None:
        self.facts = facts
        self.place = place
        self.readonly = readonly
        self.readonly_below = readonly_below
        self.users = 0


class Volumes:
    """What one sandbox shares. servers: gives the processes that serve the shared directory to the guest."""

    def __init__(
        self,
        directory: SandboxDirectory,
        files: Files,
        authorization: Authorization,
        servers: Callable[[], Collection[int]],
    ) -> None:
        self._directory = directory
        self._files = files
        self._authorization = authorization
        self._servers = servers
        self._made = 0
        self._volumes: list[_Volume] = []
        self._users: dict[str, list[_Volume]] = {}
        self._memory: dict[int, int] = {}

    def share(self, source: str, *, readonly: bool, recursive: bool, readonly_below: bool) -> SharedSource:
        """Share a file or directory of the host, or what has it already; `unshare` undoes it.

        A block device is not shared: from here on it may be plugged in. So may that which a directory stands
        for, see `direct_volumes`.

        Raises:
            RequestRefusedError: it is not authorized. RequestFailedError: the host cannot do it.
        """
        tree, facts = self._take(
            source, readonly=readonly, recursive=recursive, readonly_below=readonly_below
        )
        readonly_below = readonly_below or not facts.below
        try:
            if (assigned := self._find_assigned(source, readonly=readonly)) is not None:
                return assigned
            _refuse_part(source, facts)
            _refuse_endpoint(tree, source)
            if (node := _block_node(tree)) is not None:
                if not self._authorization.devices.add_mounted(node.device, write=not readonly):
                    raise RequestFailedError(forbidden(source, node.device), errno.EOPNOTSUPP)
                return node
            volume, place = self._find(facts, readonly=readonly, readonly_below=readonly_below) or self._add(
                tree, facts, source, readonly=readonly, recursive=recursive, readonly_below=readonly_below
            )
        finally:
            os.close(tree)
        volume.users += 1
        self._users.setdefault(place, []).append(volume)
        below = sorted({os.fsdecode(source_facts.unescape(path)) for _, path in facts.below})
        return SharedSource(place, facts.readonly, below)

    def _find_assigned(self, source: str, *, readonly: bool) -> SharedSource | None:
        """The device that root has registered for a source."""
        try:
            registration = direct_volumes.find(source)
        except DirectVolumeError as error:
            raise RequestFailedError(str(error), errno.EOPNOTSUPP) from None
        if registration is None:
            return None
        volume, file = registration
        try:
            found = os.stat(volume.device)
        except OSError as error:
            raise RequestFailedError(
                f"{source} stands for {volume.device}: {error.strerror}", errno.EOPNOTSUPP
            ) from None
        if not stat.S_ISBLK(found.st_mode):
            raise RequestFailedError(
                f"{source} stands for {volume.device}, which is no block device", errno.EOPNOTSUPP
            )
        device = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        readonly = readonly or volume.readonly
        self._authorization.devices.add_assigned(device, file, write=not readonly)
        return SharedSource(
            "",
            readonly,
            device=device,
            fstype=volume.fstype,
            options=volume.options,
            fs_group=volume.group,
            on_mismatch=volume.on_mismatch,
        )

    def find_memory(self, source: str) -> dict[str, Any] | None:
        """What a source is of memory that the host has made for the pod, see `source_facts`; None for others.

        Raises:
            RequestRefusedError: it is not authorized. RequestFailedError: the host cannot do it.
        """
        tree, facts = self._take(source, readonly=True, recursive=False, readonly_below=True)
        if facts.memory is None or facts.memory["device"] in self._memory:
            os.close(tree)
        else:
            # The guest's own stands for it as long as the pod lives: so does its number, also where it is
            # unmounted, and no other file system gets that.
            self._memory[facts.memory["device"]] = tree
        return facts.memory

    def unshare(self, place: str) -> None:
        """Undo one `share`; with the last the source is the guest's no more."""
        if not (users := self._users.get(place)):
            raise RequestRefusedError(f"{place} is not shared")
        volume = users.pop()
        if not users:
            del self._users[place]
        volume.users -= 1
        if not volume.users:
            self._volumes.remove(volume)
            self._files.unmount(self._path(volume))
            self._files.remove(self._path(volume))

    def _path(self, volume: _Volume) -> str:
        return os.path.join(self._directory.scope.shared, volume.place)

    def _take(
        self, source: str, *, readonly: bool, recursive: bool, readonly_below: bool
    ) -> tuple[int, SourceFacts]:
        """A detached copy of the source's mount, and what it is: both of what was found at once."""
        find = self._authorization.source_finder(
            source, readonly=readonly, recursive=recursive, readonly_below=readonly_below
        )
        found: list[SourceFacts] = []

        def look(path: str) -> int:
            fd = find(path) if find else os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                found.append(source_facts.look(fd, recursive=recursive))
            except BaseException:
                os.close(fd)
                raise
            return fd

        try:
            tree = self._directory.origin.take(source, recursive=recursive, find=look)
        except OSError as error:
            raise RequestFailedError(f"cannot share {source}: {error.strerror}", error.errno or 0) from None
        return tree, found[0]

    def _find(
        self, facts: SourceFacts, *, readonly: bool, readonly_below: bool
    ) -> tuple[_Volume, str] | None:
        """A volume that has the source as it is wanted, and where; one may have become writable for it."""
        same = [
            volume
            for volume in self._volumes
            if volume.facts.is_same(facts) and volume.readonly_below <= readonly_below
        ]
        for volume in sorted(same, key=lambda volume: volume.readonly):
            if readonly or not volume.readonly or self._widen(volume, facts):
                return volume, volume.place
        for volume in self._volumes:
            inside = facts.path_below(volume.facts)
            if inside is not None and (readonly or not volume.readonly) and self._has(volume, inside, facts):
                return volume, os.path.join(volume.place, os.fsdecode(source_facts.unescape(inside)))
        return None

    def _has(self, volume: _Volume, inside: bytes, facts: SourceFacts) -> bool:
        """Whether a path in a volume, which a guest may have changed, leads to the source."""
        path = os.fsdecode(source_facts.unescape(inside))
        try:
            with self._directory.scope.reach(self._path(volume)) as place:
                top = place.open()
            try:
                found = syscalls.open_beneath(top, path, same_mount=True)
            finally:
                os.close(top)
        except OSError:
            return False
        try:
            status = os.fstat(found)
            return (status.st_dev, status.st_ino) == facts.inode
        finally:
            os.close(found)

    def _widen(self, volume: _Volume, facts: SourceFacts) -> bool:
        """Let a volume be written that was read-only; false where a mount below it might get more than that.

        Its mount in each namespace that has it: flags are not propagated.
        """
        if volume.facts.below:
            return False
        if not facts.readonly:
            self._clear_readonly(volume)
            for server in self._servers():
                namespace = os.open(f"/proc/{server}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._directory.origin.visit(namespace, lambda: self._clear_readonly(volume))
                finally:
                    os.close(namespace)
            volume.readonly = False
        return True

    def _clear_readonly(self, volume: _Volume) -> None:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounted = syscalls.open_beneath(root, self._path(volume).lstrip("/"))
        except FileNotFoundError:
            return
        finally:
            os.close(root)
        try:
            syscalls.clear_attributes(mounted, syscalls.MOUNT_ATTR_RDONLY)
        finally:
            os.close(mounted)

    def _add(
        self,
        tree: int,
        facts: SourceFacts,
        source: str,
        *,
        readonly: bool,
        recursive: bool,
        readonly_below: bool,
    ) -> tuple[_Volume, str]:
        volume = _Volume(
            facts,
            f"{DIRECTORY}/{self._made}",
            readonly=readonly or facts.readonly,
            readonly_below=readonly_below,
        )
        self._made += 1
        self._files.attach(
            tree,
            source,
            self._path(volume),
            readonly=readonly,
            recursive=recursive,
            readonly_below=readonly and readonly_below,
        )
        self._volumes.append(volume)
        return volume, volume.place


def _refuse_part(source: str, facts: SourceFacts) -> None:
    """Refuse what lies in a volume that is a device, or is one by another path than it is registered by.

    What is on the device is not there: the host has not mounted it.
    """
    home = os.fsdecode(source_facts.unescape(facts.home[1]))
    for volume in direct_volumes.registered():
        # Their names first: most sources are of another, and to look costs more.
        if f"/{os.path.basename(os.path.realpath(volume))}/" not in f"{home}/":
            continue
        try:
            place = os.open(volume, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # it is registered, and not there: nothing lies in it
        try:
            inside = facts.lies_in(source_facts.look(place, recursive=False))
        finally:
            os.close(place)
        if inside:
            raise RequestFailedError(
                f"{source} lies in {volume}, which stands for a block device that the host does not mount: "
                "nothing of the volume is there; mount the whole of it, without a subPath, by that path",
                errno.EOPNOTSUPP,
            )


def _block_node(tree: int) -> SharedSource | None:
    found = os.fstat(tree)
    if not stat.S_ISBLK(found.st_mode):
        return None
    device = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return SharedSource(
        "",
        device=device,
        mode=stat.S_IMODE(found.st_mode),
        user=found.st_uid,
        group=found.st_gid,
    )


def _refuse_endpoint(tree: int, source: str) -> None:
    """Refuse what has its other end in the host's kernel: in the guest nobody would ever be there."""
    if (kind := _ENDPOINTS.get(stat.S_IFMT(os.fstat(tree).st_mode))) is not None:
        raise RequestFailedError(
            f"{source} is {kind} of the host, and the guest has a kernel of its own: nobody would answer; "
            "let the container reach the host's process over the network, or share a directory of files",
            errno.EOPNOTSUPP,
        )
