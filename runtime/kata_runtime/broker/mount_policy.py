"""Which file systems a sandbox may have mounted: their options, and what the paths in them may be.

An option is on the list of its file system, or the mount is refused, before the seal too: some name a further
file or device of the host (`device=`, `logdev=`, `journal_path=`), some panic the kernel (`errors=panic`).

Before the seal containerd speaks, and what it mounts for the first container is learned. Afterwards a guest
may own the shim, and may have written what lies in a snapshot. So a mount must be like a learned one:

    the file system      one that was learned, or overlay and bind, as containerd's own snapshotters have them
    the options          learned ones; the paths in overlay's are looked at one by one
    a path of overlay's  a directory among containerd's snapshots, reached without a link
    what can be written  overlay's upper directory, or what is bound: empty, or mounted for this sandbox
                         before, so it is nobody's layer, and of no other container that has run; and
                         mounted by nobody else, as far as this host's mounts and the other pods say
    a device             in /dev, beside a learned one and named like it but for digits; none in a snapshot;
                         read-only, or mounted by nobody: the host's disks and other pods' are named like it
    a regular file       never: its content, which the host's kernel would read, may be a guest's

Sources: mount(8), and the kernel's Documentation/filesystems of each file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_BLKROGET = 0x125E
"""Source: linux/fs.h, _IO(0x12, 94): whether a block device is read-only."""
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

# Options of overlay whose values are paths, separated by colons.
PATH_OPTIONS = ("lowerdir", "datadir", "upperdir", "workdir")
NO_PATHS = ("overlay", "none", "")
DEVICE_FILESYSTEMS = ("ext4", "xfs", "btrfs", "erofs", "squashfs")
_LAYERED = frozenset({"bind", "overlay"})
_UPPER = "upperdir="
_COPY_DEPTH, _LAYER_DEPTH = 2, 3
"""How deep below its directory a snapshotter of containerd keeps what one container has written: snapshots/1,
a copy of the whole, or snapshots/1/fs, a layer."""
_SNAPSHOTTER = "/io.containerd.snapshotter."
_COPIES = "io.containerd.snapshotter.v1.native"
"""The snapshotter that binds a whole copy of an image, which is never empty."""
_DEPTHS = {_COPIES: _COPY_DEPTH}

# SELinux's labels may have commas, in quotes.
_LABEL = r'(context|fscontext|defcontext|rootcontext)=("[\w:.,-]+"|[\w:.-]+)'
_OPTIONS = {
    "bind": (),
    "overlay": (
        r"(lowerdir|datadir)\+?=[^,]+",
        r"(upperdir|workdir)=[^,]+",
        r"(index|metacopy|xino|redirect_dir|verity|uuid|nfs_export)=[a-z]+",
        r"volatile|userxattr",
    ),
    "ext4": (
        r"(no)?(discard|barrier|acl|user_xattr|delalloc|auto_da_alloc)|noload|norecovery|(no)?quota",
        r"barrier=[01]|data=(ordered|writeback|journal)|errors=(continue|remount-ro)|commit=\d+|stripe=\d+",
        r"(usr|grp|prj)quota",
    ),
    "xfs": (
        r"nouuid|norecovery|inode(32|64)|(no)?discard|(no)?attr2|noquota|[ugp]quota|(usr|grp|prj)quota",
        r"logbufs=\d+|logbsize=\d+k?|allocsize=\d+[kmg]?|(no)?largeio",
    ),
    "btrfs": (
        r"subvol=[^,]+|subvolid=\d+|compress(-force)?(=[a-z]+(:\d+)?)?|(no)?(ssd|acl|barrier|autodefrag)",
        r"(no)?discard(=(sync|async))?|(no)?space_cache(=v[12])?|user_subvol_rm_allowed|commit=\d+",
    ),
    "zfs": (r"zfsutil",),
    "erofs": (r"(no)?(acl|user_xattr)", r"cache_strategy=[a-z]+"),
    "squashfs": (r"errors=continue", r"threads=\w+"),
}
_ALLOWED = {
    kind: re.compile("|".join(f"(?:{pattern})" for pattern in (*patterns, _LABEL)))
    for kind, patterns in _OPTIONS.items()
}


class MountPolicy:
    """What one sandbox may have mounted. snapshots: directories in which containerd keeps snapshots.

    block_devices: paths of those that were learned.
    """

    def __init__(self, snapshots: Iterable[str]) -> None:
        # How many names below each directory of snapshots lies what one container writes.
        self._snapshots: dict[str, int] = {}
        # Directories in which containers' copies lie side by side, and nothing that is one container's alone.
        self._shared: set[str] = set()
        for path in snapshots:
            self._add(path, os.path.basename(path))
        # A sandbox of the sandbox API is sealed before its first container comes.
        self._options: dict[str, set[str]] = {kind: {"index=off", "userxattr"} for kind in _LAYERED}
        self._devices: set[tuple[str, str]] = set()
        self._datasets: set[str] = set()
        # Directories of this sandbox's containers, which have been mounted to be written.
        self._own: set[str] = set()
        self.block_devices: set[str] = set()

    def learn(self, kind: str, source: str, options: Iterable[str], *, writable: bool = False) -> None:
        """Take a mount of containerd's as the like of which there may be later ones.

        writable: whether what is bound can be written.

        Raises:
            RequestRefusedError: one of its options is not allowed.
        """
        options = list(options)
        _check_options(kind, options)
        for like in _LAYERED if kind in _LAYERED else {kind}:
            self._options.setdefault(like, set()).update(map(_like, options))
        if kind == "zfs":
            self._datasets.add(os.path.dirname(source))
        elif kind in DEVICE_FILESYSTEMS:
            self._devices.add(_device_like(source))
            self.block_devices.add(source)
        self._own.update(_written(kind, source, options, writable=writable))
        for path in paths_of(kind, source, options):
            scope = _snapshot_scope(path)
            self._add(scope, os.path.basename(scope), copies=kind == "bind")

    def _add(self, directory: str, name: str, *, copies: bool = False) -> None:
        """Take a directory of snapshots. copies: whether it has them, where its name does not tell."""
        depth = _DEPTHS.get(name, _LAYER_DEPTH) if _is_snapshotter(name) else 1
        for path in {directory, os.path.realpath(directory)} - {"/", ""}:
            self._snapshots[path] = depth
            if depth == _COPY_DEPTH:
                self._shared.add(f"{path}/snapshots")
            elif depth == 1 and copies:
                self._shared.add(path)

    def finder(
        self, kind: str, source: str, options: Iterable[str], *, writable: bool = False
    ) -> Callable[[str], int]:
        """After the seal: how the paths of a mount are found, if it is like a learned one.

        writable: whether what is bound can be written.

        What is returned opens (O_PATH) a path. It raises OSError, RequestRefusedError.

        Raises:
            RequestRefusedError: no mount like it was learned.
        """
        options = list(options)
        _check_options(kind, options)
        if kind not in self._options:
            raise RequestRefusedError(
                f"cannot mount {kind}: the sandbox is sealed, and its first container has no such file system"
            )
        if (
            unknown := {_like(option) for option in options}
            - self._options[kind]
            - set(map(_path_like, options))
        ):
            raise RequestRefusedError(
                f"cannot mount {kind} with {min(unknown)[:100]!r}: the sandbox is sealed, and no mount of "
                "its first container has this option"
            )
        if kind == "zfs":
            self._check_dataset(source)
        if kind in DEVICE_FILESYSTEMS:
            return self._find_device
        written = _written(kind, source, options, writable=writable)
        self._check_work(written, options)
        return lambda path: self._find_directory(path, written=path in written)

    def _check_dataset(self, source: str) -> None:
        if os.path.dirname(source) not in self._datasets or ".." in source:
            raise RequestRefusedError(
                f"cannot mount the dataset {source[:200]}: the sandbox is sealed, and it is not beside that "
                "of the first container"
            )

    def _find_directory(self, path: str, *, written: bool) -> int:
        """Open a directory among containerd's snapshots, without following a link.

        Guests write to snapshots: what looks like a layer may be a link by the time that it is mounted.

        written: whether it will be written, and must be nobody else's.
        """
        found = self._open_beneath(path)
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            os.close(found)
            raise RequestRefusedError(
                f"cannot mount {path}: the sandbox is sealed, and it is not a directory"
            )
        if written and path not in self._own:
            if not self._is_fresh(path, found) or is_mounted(path, _read_mounts()):
                os.close(found)
                raise RequestRefusedError(
                    f"cannot mount {path} to be written: the sandbox is sealed, and it is not an empty "
                    "directory that a snapshotter has just made, or it is mounted, so it may be another "
                    "container's"
                )
            self._own.add(path)
        return found

    def _is_fresh(self, path: str, found: int) -> bool:
        """Whether a directory is one that a snapshotter has made, and not one of a layer, and still empty."""
        within = [directory for directory in self._snapshots if path.startswith(directory + "/")]
        if os.path.normpath(path) != path or not all(self._has_depth(path, one) for one in within):
            return False
        return _COPIES in path.split("/") or not os.listdir(f"/proc/self/fd/{found}")

    def _has_depth(self, path: str, directory: str) -> bool:
        """Whether a path is as deep in a directory of snapshots as what one container has written there."""
        depths = {own.count("/") for own in self._own if own.startswith(directory + "/")}
        return path.count("/") in depths | {directory.count("/") + self._snapshots[directory]}

    def _check_work(self, written: Iterable[str], options: Iterable[str]) -> None:
        """Refuse a work directory that is not beside the upper one in a directory of that container's alone.

        The kernel makes files in it, and removes what is in its `work` and `index`.
        """
        homes = {os.path.dirname(upper) for upper in written}
        for option in options:
            key, _, path = option.partition("=")
            if key == "workdir" and (
                os.path.normpath(path) != path or homes - {os.path.dirname(path)} or homes & self._shared
            ):
                raise RequestRefusedError(
                    f"cannot mount overlay with {option[:200]!r}: the sandbox is sealed, and it is not "
                    "beside the upper directory, in a directory of that container's alone"
                )

    def _open_beneath(self, path: str) -> int:
        for directory in self._snapshots:
            if path.startswith(directory + "/"):
                holder = os.open(directory, _DIRECTORY)
                try:
                    return syscalls.open_beneath(holder, path[len(directory) + 1 :])
                finally:
                    os.close(holder)
        raise RequestRefusedError(
            f"cannot mount {path}: the sandbox is sealed, and it is not among containerd's snapshots"
        )

    def _find_device(self, path: str) -> int:
        """Open a block device in /dev that is named like a learned one; no guest writes there."""
        if _device_like(path) not in self._devices:
            raise RequestRefusedError(
                f"cannot mount {path}: the sandbox is sealed, and it is not named like a device that "
                "containerd gave for the first container"
            )
        real = os.path.realpath(path)
        if not real.startswith("/dev/"):
            raise RequestRefusedError(f"cannot mount {path}: the sandbox is sealed, and it is not in /dev")
        found = os.open(real, _LOOK)
        try:
            if not stat.S_ISBLK(os.fstat(found).st_mode):
                raise RequestRefusedError(
                    f"cannot mount {path}: the sandbox is sealed, and it is not a block device"
                )
            if _is_anothers(found):
                raise RequestRefusedError(
                    f"cannot mount {path}: the sandbox is sealed, and somebody else has it mounted"
                )
        except BaseException:
            os.close(found)
            raise
        return found


def is_mounted(path: str, mountinfo: str) -> bool:
    """Whether some mount of proc_pid_mountinfo(5) writes to a directory: an overlay's upper one, or bound."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        root, options = fields.split()[3], rest.split()[-1].split(",")
        if _UPPER + path in options or (_SNAPSHOTTER in root and path.endswith(root)):
            return True
    return False


def _read_mounts() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def claimed(kind: str, source: str, options: Iterable[str], *, writable: bool) -> list[str]:
    """The directories of snapshots that a mount writes to, which only one sandbox may have, without links."""
    written = _written(kind, source, options, writable=writable)
    return [os.path.realpath(path) for path in written if kind == "overlay" or _SNAPSHOTTER in path]


def _is_anothers(found: int) -> bool:
    """Whether a device can be written and is mounted, or claimed otherwise, by somebody. Raises OSError."""
    path = f"/proc/self/fd/{found}"
    device = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        (read_only,) = struct.unpack("i", fcntl.ioctl(device, _BLKROGET, bytes(4)))
        if read_only:
            return False
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    finally:
        os.close(device)
    return False


def paths_of(kind: str, source: str, options: Iterable[str]) -> list[str]:
    """The directories of the host that a mount names: what is bound, and overlay's."""
    paths = [] if source in NO_PATHS or kind not in _LAYERED else [source]
    for option in options:
        key, _, value = option.partition("=")
        if key.rstrip("+") in PATH_OPTIONS:
            paths += value.split(":")
    return paths


def _written(kind: str, source: str, options: Iterable[str], *, writable: bool) -> set[str]:
    """The directories that a mount writes to. writable: whether a bind mount does."""
    if kind == "bind":
        return {source} if writable else set()
    return {option.removeprefix(_UPPER) for option in options if option.startswith(_UPPER)}


def _check_options(kind: str, options: Iterable[str]) -> None:
    for option in options:
        if not _ALLOWED[kind].fullmatch(option):
            raise RequestRefusedError(
                f"the mount option {option[:200]!r} of {kind} is not allowed: it is not among those that are "
                "known to name no further file or device of the host"
            )


def _like(option: str) -> str:
    """An option as others are compared with it: a subvolume by the one that it lies in."""
    key, _, value = option.partition("=")
    if key == "subvol":
        return f"subvol={os.path.dirname(os.path.normpath(value))}/*"
    return _path_like(option) or option


def _path_like(option: str) -> str:
    """The key of an option of overlay's that names paths, or nothing: its paths are found one by one."""
    key = option.partition("=")[0]
    return key + "=" if key.rstrip("+") in PATH_OPTIONS else ""


def _device_like(path: str) -> tuple[str, str]:
    """The directory of a device, and its name without the digits."""
    directory, name = os.path.split(os.path.normpath(path))
    return directory, re.sub(r"\d+", "0", name)


def _is_snapshotter(name: str) -> bool:
    """Whether a directory is named as containerd names that of a snapshotter."""
    return name.startswith(_SNAPSHOTTER.lstrip("/"))


def _snapshot_scope(path: str) -> str:
    """Where a snapshotter keeps what lies beside a path: its own directory, where containerd named it."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if _is_snapshotter(part):
            return "/".join(parts[: index + 1])
    return os.path.dirname(path)
