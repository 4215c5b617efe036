"""A read-only image of a root file system, for hypervisors that share no files: made once for each content.

A program of its own, which the broker starts where the root file system is mounted, with `python -IS`; it
needs the standard library and mkfs.erofs. It prints the image's path, a space and the mode of the root
directory in octal; or one line about what is wrong.

    rootfs_image.py ROOT CACHE

The name of an image is the hash of everything that the guest can see of the tree, so nobody can put something
else behind a name. A machine that has an image open keeps it when it is removed here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE_LIMIT = 16 << 30
"""Bytes of images that are kept; the least recently used go first."""

IMAGE_LIMIT = 16 << 30
"""Bytes of files that an image is made of; what is larger is not even read."""

SUFFIX = ".erofs"
MAKER = "mkfs.erofs"
_CHUNK = 1 << 20


class RootfsImageError(Exception):
    """The image cannot be made. One line: what was attempted, what is wrong, what to do."""


def identity(root: str) -> str:
    """Hash a tree: names, types, modes, owners, times, links, devices, extended attributes and contents.

    But not the time of its root: a snapshot's is that of its making, and the guest's overlay has its own.
    """
    whole = hashlib.sha256()
    seen: dict[tuple[int, int], str] = {}
    for path in _walk(root):
        facts = os.lstat(path)
        name = os.path.relpath(path, root)
        time = facts.st_mtime_ns if path != root else 0
        parts: list[object] = [name, facts.st_mode, facts.st_uid, facts.st_gid, time]
        first = seen.setdefault((facts.st_dev, facts.st_ino), name)
        if stat.S_ISLNK(facts.st_mode):
            parts.append(os.readlink(path))
        elif stat.S_ISREG(facts.st_mode):
            # A second name of the same file is hashed as the first name.
            parts.append(first if first != name else _content(path))
        elif stat.S_ISBLK(facts.st_mode) or stat.S_ISCHR(facts.st_mode):
            parts.append(facts.st_rdev)
        parts += _attributes(path)
        whole.update(repr(parts).encode("utf-8", "surrogateescape") + b"\0")
    return whole.hexdigest()


def size_of(root: str) -> int:
    """The bytes of the regular files in a tree, each once, with their holes: what an image has at least."""
    found = {
        (facts.st_dev, facts.st_ino): facts.st_size
        for facts in map(os.lstat, _walk(root))
        if stat.S_ISREG(facts.st_mode)
    }
    return sum(found.values())


def _walk(root: str) -> Iterator[str]:
    """Yield the root and everything below it, on its file system, in an order that depends on names only."""
    yield root
    with os.scandir(root) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry.path


def _content(path: str) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _attributes(path: str) -> list[object]:
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    except OSError:
        return []  # a file system without them


def ensure(root: str, cache: str) -> str:
    """Return the path of the image of a tree, made now unless there is one of the same content.

    Raises:
        RootfsImageError: it cannot be made.
    """
    maker = shutil.which(MAKER)
    if maker is None:
        raise RootfsImageError(
            f"cannot make an image of {root}: {MAKER} is missing; install erofs-utils, or use a hypervisor "
            "that shares files"
        )
    os.makedirs(cache, mode=0o700, exist_ok=True)
    size = size_of(root)
    if size > IMAGE_LIMIT:
        raise RootfsImageError(
            f"cannot make an image of {root}: its files have {size >> 20} MiB, an image at most "
            f"{IMAGE_LIMIT >> 20}; use a hypervisor that shares files, or a snapshotter of block devices"
        )
    path = os.path.join(cache, identity(root) + SUFFIX)
    try:
        os.utime(path)
    except FileNotFoundError:
        free = shutil.disk_usage(cache).free
        if size > free:
            raise RootfsImageError(
                f"cannot make an image of {root}: its files have {size >> 20} MiB, and there are "
                f"{free >> 20} free in {cache}; make room there, or remove images that no machine uses"
            ) from None
        _make(maker, root, path)
        _prune(cache, path)
    return path


def _make(maker: str, root: str, path: str) -> None:
    unfinished = f"{path}.{os.getpid()}"
    try:
        done = subprocess.run([maker, unfinished, root], capture_output=True, text=True, check=False)
        if done.returncode:
            tail = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RootfsImageError(f"cannot make an image of {root}: {MAKER}: {tail[-1]}")
        os.chmod(unfinished, 0o444)
        os.rename(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def _prune(cache: str, kept: str) -> None:
    """Remove the images that were not used for longest, until the rest is within the limit."""
    images = [entry.path for entry in os.scandir(cache) if entry.name.endswith(SUFFIX)]
    images.sort(key=lambda path: os.stat(path).st_mtime_ns, reverse=True)
    total = 0
    for path in images:
        total += os.stat(path).st_size
        if total > CACHE_LIMIT and path != kept:
            os.unlink(path)


def main(arguments: list[str]) -> int:
    """Make the image of a tree; see the module."""
    root, cache = arguments
    try:
        print(ensure(root, cache), f"{stat.S_IMODE(os.lstat(root).st_mode):o}")
    except RootfsImageError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"cannot make an image of {root}: {where}{error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
