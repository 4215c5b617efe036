"""What a source of a bind mount is: by that, not by its name, a sandbox knows whether it shares it already.

The mounts of the process's namespace are read, so it is the sources' namespace that must be entered. Sources:
proc_pid_mountinfo(5), proc_pid_fdinfo(5); the kubelet's pkg/volume/emptydir for where its volumes are.
"""

from __future__ import annotations

import os
import re
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPECIAL = re.compile(rb"[ \t\n\\]")
_OF_A_POD = re.compile(rb"/kubernetes\.io~empty-dir/[^/]+$|(?<!^/dev)/shm$")
"""Where memory is mounted that a pod has for itself: a kubelet's emptyDir, and what containerd, Docker and
nerdctl call shm. The host's own /dev/shm is the host's."""
_FILE_SYSTEMS = ("tmpfs", "hugetlbfs")
_FLAGS = (b"nosuid", b"nodev", b"noexec")


class SourceFacts:
    """What is behind a descriptor.

    inode: device and number. below: what is mounted below it and comes along, as (mount id, path from here).
    home: device of its file system, and its path in there; two paths of the host can lead to one. readonly:
    whether its own mount or file system is. memory: what it is of the pod's, see `_memory`.
    """

    __slots__ = ("below", "home", "inode", "memory", "readonly")

    def __init__(
        self,
        inode: tuple[int, int],
        home: tuple[int, bytes],
        below: frozenset[tuple[bytes, bytes]],
        *,
        readonly: bool,
        memory: dict[str, Any] | None = None,
    ) -> None:
        self.memory = memory
        self.inode = inode
        self.home = home
        self.below = below
        self.readonly = readonly

    def is_same(self, other: SourceFacts) -> bool:
        """Whether a program would see the same files there."""
        return self.inode == other.inode and self.below == other.below

    def lies_in(self, other: SourceFacts) -> bool:
        """Whether it is another directory, or in there, by whatever path of the host."""
        device, top = other.home
        return self.home[0] == device and (self.home[1] + b"/").startswith(top.rstrip(b"/") + b"/")

    def path_below(self, other: SourceFacts) -> bytes | None:
        """The path from another directory to this, where it is in there and no mount is on the way."""
        device, top = other.home
        if self.home[0] != device or self.below or not self.home[1].startswith(top.rstrip(b"/") + b"/"):
            return None
        inside = self.home[1][len(top.rstrip(b"/")) + 1 :]
        steps = inside + b"/"
        crossed = any(
            (path + b"/").startswith(steps) or steps.startswith(path + b"/") for _, path in other.below
        )
        return None if crossed else inside


def look(fd: int, *, recursive: bool) -> SourceFacts:
    """Find out what a descriptor (O_PATH) is of. recursive: whether what is mounted below it comes along."""
    found = os.fstat(fd)
    path = _escape(os.fsencode(os.readlink(f"/proc/self/fd/{fd}")))
    own = _mount_id(fd)
    start = path.rstrip(b"/") + b"/"
    device = b"%d:%d" % (os.major(found.st_dev), os.minor(found.st_dev))
    home, readonly, memory = path, False, None
    below = set()
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            number, _, its_device, root, point, options, *rest = line.split()
            if number == own:
                home = _join(root, path[len(point.rstrip(b"/")) :])
                readonly = b"ro" in options.split(b",") or b"ro" in rest[-1].split(b",")
            elif recursive and point.startswith(start):
                below.add((number, point[len(start) :]))
            if its_device == device and root == b"/" and _OF_A_POD.search(point):
                memory = (point, options, rest)
    facts = SourceFacts(
        (found.st_dev, found.st_ino), (found.st_dev, home), frozenset(below), readonly=readonly
    )
    if memory is not None:
        facts.memory = _memory(facts, *memory)
    return facts


def _memory(facts: SourceFacts, point: bytes, options: bytes, rest: list[bytes]) -> dict[str, Any] | None:
    """What a mount is of that was made for a pod, by its line in mountinfo; None for one on a disk.

    kind: tmpfs or hugetlbfs. device: its number. path: of the source in it, "" for all of it. size: as the
    mount option has it, "65536k"; "" without a limit of its own. mode, user, group: of its top. flags: of the
    mount, as mount(8) names them.
    """
    kind, top = rest[-3].decode(), os.stat(unescape(point))
    if kind not in _FILE_SYSTEMS or top.st_dev != facts.home[0]:
        return None
    size = next((option[5:] for option in rest[-1].split(b",") if option.startswith(b"size=")), b"")
    return {
        "kind": kind,
        "device": top.st_dev,
        "path": os.fsdecode(unescape(facts.home[1].lstrip(b"/"))),
        "size": size.decode(),
        "mode": stat.S_IMODE(top.st_mode),
        "user": top.st_uid,
        "group": top.st_gid,
        "flags": [flag.decode() for flag in options.split(b",") if flag in _FLAGS],
    }


def _join(root: bytes, inside: bytes) -> bytes:
    return root.rstrip(b"/") + inside or b"/"


def _escape(path: bytes) -> bytes:
    """As mountinfo writes a path."""
    return _SPECIAL.sub(lambda found: b"\\%03o" % found[0][0], path)


def unescape(path: bytes) -> bytes:
    """Undo mountinfo's way to write a path."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path)


def _mount_id(fd: int) -> bytes:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return line[7:].strip()
    raise OSError(f"/proc/self/fdinfo/{fd} names no mount")
