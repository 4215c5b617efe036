"""Which file systems a sandbox may have mounted: their options, and what the paths in them may be.

An option is on the list of its file system, or the mount is refused, before the seal too: some name a further
file or device of the host (`device=`, `logdev=`, `journal_path=`), some panic the kernel (`errors=panic`).

Before the seal containerd speaks, and what it mounts for the first container is learned. Afterwards a guest
may own the shim, and may have written what lies in a snapshot. So a mount must be like a learned one:

    the file system      one that was learned, or overlay and bind, as containerd's own snapshotters have them
    the options          learned ones; the paths in overlay's are looked at one by one
    a path of overlay's  a directory among containerd's snapshots, reached without a link
    a device             in /dev, beside a learned one and named like it but for digits; none in a snapshot
    a regular file       never: its content, which the host's kernel would read, may be a guest's

Sources: mount(8), and the kernel's Documentation/filesystems of each file system.
"""

from __future__ import annotations

import os
import re
import stat

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

# Options of overlay whose values are paths, separated by colons.
PATH_OPTIONS = ("lowerdir", "datadir", "upperdir", "workdir")
NO_PATHS = ("overlay", "none", "")
DEVICE_FILESYSTEMS = ("ext4", "xfs", "btrfs", "erofs", "squashfs")
_LAYERED = frozenset({"bind", "overlay"})

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
    """What one sandbox may have mounted. snapshots: directories in which containerd keeps snapshots."""

    def __init__(self, snapshots: Iterable[str]) -> None:
        self._snapshots = set(snapshots)
        # A sandbox of the sandbox API is sealed before its first container comes.
        self._options: dict[str, set[str]] = {kind: {"index=off", "userxattr"} for kind in _LAYERED}
        self._devices: set[tuple[str, str]] = set()
        self._datasets: set[str] = set()

    def learn(self, kind: str, source: str, options: Iterable[str]) -> None:
        """Take a mount of containerd's as the like of which there may be later ones.

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
        for path in paths_of(kind, source, options):
            scope = _snapshot_scope(path)
            self._snapshots |= {scope, os.path.realpath(scope)} - {"/", ""}

    def finder(self, kind: str, source: str, options: Iterable[str]) -> Callable[[str], int]:
        """After the seal: how the paths of a mount are found, if it is like a learned one.

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
        return self._find_device if kind in DEVICE_FILESYSTEMS else self._find_directory

    def _check_dataset(self, source: str) -> None:
        if os.path.dirname(source) not in self._datasets or ".." in source:
            raise RequestRefusedError(
                f"cannot mount the dataset {source[:200]}: the sandbox is sealed, and it is not beside that "
                "of the first container"
            )

    def _find_directory(self, path: str) -> int:
        """Open a directory among containerd's snapshots, without following a link.

        Guests write to snapshots: what looks like a layer may be a link by the time that it is mounted.
        """
        found = self._open_beneath(path)
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            os.close(found)
            raise RequestRefusedError(
                f"cannot mount {path}: the sandbox is sealed, and it is not a directory"
            )
        return found

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
        if not stat.S_ISBLK(os.fstat(found).st_mode):
            os.close(found)
            raise RequestRefusedError(
                f"cannot mount {path}: the sandbox is sealed, and it is not a block device"
            )
        return found


def paths_of(kind: str, source: str, options: Iterable[str]) -> list[str]:
    """The directories of the host that a mount names: what is bound, and overlay's."""
    paths = [] if source in NO_PATHS or kind not in _LAYERED else [source]
    for option in options:
        key, _, value = option.partition("=")
        if key.rstrip("+") in PATH_OPTIONS:
            paths += value.split(":")
    return paths


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


def _snapshot_scope(path: str) -> str:
    """Where a snapshotter keeps what lies beside a path: its own directory, where containerd named it."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if part.startswith("io.containerd.snapshotter."):
            return "/".join(parts[: index + 1])
    return os.path.dirname(path)
