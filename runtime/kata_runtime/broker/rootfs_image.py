"""A read-only image of a root file system, for hypervisors that share no files: made once for each content.

A program of its own, which the broker starts with `python -IS`; it needs the standard library and mkfs.erofs.
It prints the image's path, a space and the mode of the root directory in octal; or one line about what is
wrong.

    rootfs_image.py NAME DESCRIPTOR CACHE

The root directory is an open descriptor. NAME is its path, for sentences only: a guest that owns the shim may
have something else mounted there before it is read, in which links lead out.

The name of an image is the SHA-256 of the image itself. A link beside it, named by the hash of everything
that the guest can see of a tree, says which image holds that tree. A guest may write to the tree while it is
read, so an image and its link are made of a private copy: the link is true of the image, whatever the tree is
by then. A machine that has an image open keeps it when it is removed here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE_LIMIT = 16 << 30
"""Bytes of images that are kept; the least recently used go first."""

IMAGE_LIMIT = 16 << 30
"""Bytes of files that an image is made of; what is larger is not even read."""

SUFFIX = ".erofs"
LINK = ".tree"
SCRATCH = ".making-"
MAKER = "mkfs.erofs"
_CHUNK = 1 << 20


class RootfsImageError(Exception):
    """The image cannot be made. One line: what is wrong, what to do."""


def identity(root: str) -> str:
    """Hash a tree: names, types, modes, owners, times, links, devices, extended attributes and contents.

    But not the time of its root: a snapshot's is that of its making, and the guest's overlay has its own.
    """
    whole = hashlib.sha256()
    seen: dict[tuple[int, int], str] = {}
    for path in _walk(root):
        facts = os.lstat(path)
        name = path[len(root) + 1 :] or "."
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
            f"{MAKER} is missing; install erofs-utils, or use a hypervisor that shares files"
        )
    os.makedirs(cache, mode=0o700, exist_ok=True)
    size = size_of(root)
    if size > IMAGE_LIMIT:
        raise RootfsImageError(
            f"its files have {size >> 20} MiB, an image at most {IMAGE_LIMIT >> 20}; use a hypervisor that "
            "shares files, or a snapshotter of block devices"
        )
    found = _find(cache, identity(root))
    if found is not None:
        return found
    free = shutil.disk_usage(cache).free
    if 2 * size > free:  # the copy, and the image
        raise RootfsImageError(
            f"its files have {size >> 20} MiB, of which a copy is made too, and there are {free >> 20} MiB "
            f"free in {cache}; make room there, or remove images that no machine uses"
        )
    path = _make(maker, root, cache)
    _prune(cache, path)
    return path


def _find(cache: str, key: str) -> str | None:
    """The image of a tree with this identity, which is then the one that was used last."""
    link = os.path.join(cache, key + LINK)
    try:
        path = os.path.join(cache, os.path.basename(os.readlink(link)))
        os.utime(path)
    except OSError:
        return None
    return path


def _make(maker: str, root: str, cache: str) -> str:
    """Make the image of a copy of a tree, and the link to it; nothing else is left, also when it fails."""
    scratch = tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=cache)
    try:
        copy, image = os.path.join(scratch, "root"), os.path.join(scratch, "image")
        _run(["cp", "--archive", "--one-file-system", "--reflink=auto", root, copy])
        _run([maker, image, copy])
        os.chmod(image, 0o444)
        with open(image, "rb") as file:
            path = os.path.join(cache, hashlib.file_digest(file, "sha256").hexdigest() + SUFFIX)
        link = os.path.join(scratch, "link")
        os.symlink(os.path.basename(path), link)
        os.rename(image, path)
        os.rename(link, os.path.join(cache, identity(copy) + LINK))
        return path
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RootfsImageError(f"{os.path.basename(command[0])}: {tail[-1]}")


def _prune(cache: str, kept: str) -> None:
    """Remove the images that were not used for longest, until the rest is within the limit.

    Others may do the same at the same time: what is gone already is theirs.
    """
    images = []
    for entry in os.scandir(cache):
        with contextlib.suppress(FileNotFoundError):
            if entry.name.endswith(SUFFIX):
                facts = entry.stat(follow_symlinks=False)
                images.append((facts.st_mtime_ns, facts.st_size, entry.path))
    total = 0
    for _, size, path in sorted(images, reverse=True):
        total += size
        if total > CACHE_LIMIT and path != kept:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    for entry in os.scandir(cache):
        if entry.name.endswith(LINK) and not os.path.exists(entry.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
        elif entry.name.startswith(SCRATCH) and _is_abandoned(entry.name):
            shutil.rmtree(entry.path, ignore_errors=True)


def _is_abandoned(scratch: str) -> bool:
    """Whether the process that made a scratch directory is gone: it was killed."""
    pid = scratch.removeprefix(SCRATCH).partition("-")[0]
    return not os.path.exists(f"/proc/{pid}")


def main(arguments: list[str]) -> int:
    """Make the image of a tree; see the module."""
    name, root, cache = arguments
    try:
        os.fchdir(int(root))
        print(ensure(".", cache), f"{stat.S_IMODE(os.stat('.').st_mode):o}")
    except RootfsImageError as error:
        print(f"cannot make an image of {name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"cannot make an image of {name}: {where}{error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
