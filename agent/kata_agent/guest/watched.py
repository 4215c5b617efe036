"""Copies of small volumes that the host updates, so that programs are told of it.

A file system that is shared with the host tells nobody in the guest of what changes there: no inotify event.
A kubelet's configMap, secret, projected or downwardAPI volume is small and only read. So containers get a
copy, on a file system of the guest's, and the agent brings it up to date in the kubelet's own steps: the
events are those that a program on the host would see.

A kubelet lets no container write to such a volume. Whoever can all the same, by another way to its files,
gains nothing: a version is a directory in the volume and no path, each name is opened by itself, no link is
followed, and a copy has a size.

Source: the kubelet's AtomicWriter (pkg/volume/util/atomic_writer.go): files lie in a directory of their own
for each version, `..data` is a link to the newest, and what users see are links through it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator

from kata_agent.guest import log
from kata_agent.guest.files import remove_tree

_NEWEST = "..data"
_NEXT = "..data_tmp"
_PAUSE = 2.0
"""Seconds between two looks, as in upstream's agent."""
_LARGEST = 8 << 20
"""Bytes of the guest's memory for a copy: a configMap has one MiB at most, a projected volume several."""
_PAGE = 4096
_DEEPEST = 32
"""Directories in each other. Each of them takes two descriptors while it is copied."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class _TooLargeError(OSError):
    """There is more in a volume than a copy may have."""

    def __init__(self) -> None:
        super().__init__(errno.EFBIG, "it is too large or too deep for a copy")


class _Room:
    """What a copy may still take."""

    def __init__(self) -> None:
        self._left = _LARGEST

    def take(self, size: int, depth: int = 0) -> None:
        """Take a file's room, in whole pages. Raises _TooLargeError."""
        self._left -= max(1, -(-size // _PAGE)) * _PAGE
        if self._left < 0 or depth > _DEEPEST:
            raise _TooLargeError


class WatchedCopies:
    """The copies of one guest. All methods may be called from any thread."""

    def __init__(self, pause: float = _PAUSE) -> None:
        self._pause = pause
        self._lock = threading.Lock()
        self._copies: dict[str, _Copy] = {}
        self._thread: threading.Thread | None = None

    def add(self, source: str, target: str) -> bool:
        """Copy a volume, and keep the copy up to date until `remove`.

        Returns false, and has made nothing, for what a kubelet has not made, and for what is too large.

        Raises:
            OSError: it cannot be read, or the guest has no room for it.
        """
        if not _is_volume(source):
            return False
        copy = _Copy(source, target)
        os.makedirs(target, mode=0o755, exist_ok=True)
        try:
            copy.begin()
        except _TooLargeError:
            remove_tree(target)
            return False
        with self._lock:
            self._copies[target] = copy
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watched", daemon=True)
                self._thread.start()
        return True

    def remove(self, target: str) -> None:
        """Let a copy be; the files stay. Nothing, where there is none."""
        with self._lock:
            self._copies.pop(target, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._pause)
            with self._lock:
                for copy in self._copies.values():
                    copy.look()


class _Copy:
    """A volume of the host, and its copy."""

    def __init__(self, source: str, target: str) -> None:
        self._source = source
        self._target = target
        self._version = ""
        self._settled = False
        self._told = ""

    def begin(self) -> None:
        """Take over the newest version, or the next where that one goes meanwhile. Raises OSError."""
        while True:
            version = _version_of(self._source)
            try:
                return self.update()
            except FileNotFoundError:
                if _version_of(self._source) == version:
                    raise

    def look(self) -> None:
        """Bring the copy up to date if there is a new version; what fails is tried again at the next look."""
        try:
            if not self._settled or _version_of(self._source) != self._version:
                self.update()
        except OSError as error:
            self._settled = False
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        """Log why the copy is not up to date: once, where no later look will change it."""
        text = f"copy {self._source}: {error}"
        lasts = isinstance(error, _TooLargeError) and text != self._told
        self._told = text
        (log.info if lasts else log.debug)(text)

    def update(self) -> None:
        """Take over the newest version, in the order of the AtomicWriter. Raises OSError.

        Its last steps may still be under way on the host: one more update settles it.
        """
        version = _version_of(self._source)
        room = _Room()
        self._settled = version == self._version
        with _opened(self._source, _DIRECTORY) as source, _opened(self._target, _DIRECTORY) as target:
            if version != self._version:
                _copy_attributes(source, target)
                _copy_directory(source, target, version, room)
                _link(version, _NEXT, target)
                os.rename(_NEXT, _NEWEST, src_dir_fd=target, dst_dir_fd=target)
            _copy_links(source, target, room)
        self._version = version
        for name in os.listdir(self._target):
            if name.startswith("..") and name not in (version, _NEWEST):
                remove_tree(f"{self._target}/{name}")


def _version_of(volume: str) -> str:
    """The name of a volume's newest version. Raises OSError: there is none that an AtomicWriter names."""
    version = os.readlink(f"{volume}/{_NEWEST}")
    if "/" in version or not version.startswith("..") or version in ("..", _NEWEST, _NEXT):
        raise OSError(errno.EINVAL, f"{version!r} is no version of a volume")
    return version


def _is_volume(path: str) -> bool:
    """Whether it is as an AtomicWriter leaves it: versions, and links for users."""
    try:
        _version_of(path)
        with os.scandir(path) as entries:
            kinds = {entry.name: entry.is_symlink() for entry in entries}
    except OSError:
        return False
    return all(link or name.startswith("..") for name, link in kinds.items())


def _copy_directory(source: int, target: int, name: str, room: _Room, depth: int = 0) -> None:
    """Copy a directory in one directory into another, of what is in it directories, regular files, and links.

    A copy that was begun before, and not finished, is written over. Raises OSError.
    """
    room.take(0, depth)
    try:
        os.mkdir(name, 0o700, dir_fd=target)
    except FileExistsError:
        pass
    with _opened(name, _DIRECTORY, source) as here, _opened(name, _DIRECTORY, target) as there:
        for inner in os.listdir(here):
            kind = stat.S_IFMT(os.stat(inner, dir_fd=here, follow_symlinks=False).st_mode)
            if kind == stat.S_IFDIR:
                _copy_directory(here, there, inner, room, depth + 1)
            elif kind == stat.S_IFREG:
                _copy_file(here, there, inner, room)
            elif kind == stat.S_IFLNK:
                room.take(0)
                _link(os.readlink(inner, dir_fd=here), inner, there)
        _copy_attributes(here, there)


def _copy_file(source: int, target: int, name: str, room: _Room) -> None:
    """Copy as much as a file has when it is opened. Raises OSError."""
    with _opened(name, _READ, source) as here:
        left = os.fstat(here).st_size
        room.take(left)
        with _opened(name, _WRITE, target) as there:
            while left and (sent := os.sendfile(there, here, None, left)):
                left -= sent
            _copy_attributes(here, there)


@contextlib.contextmanager
def _opened(name: str, flags: int, directory: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_attributes(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))


def _copy_links(source: int, target: int, room: _Room) -> None:
    """Have the same links for users in both directories; those that begin with ".." are the writer's own."""
    wanted = {}
    for name in os.listdir(source):
        if not name.startswith(".."):
            room.take(0)
            wanted[name] = os.readlink(name, dir_fd=source)
    there = {name for name in os.listdir(target) if not name.startswith("..")}
    for name in wanted.keys() - there:
        _link(wanted[name], name, target)
    for name in there - wanted.keys():
        os.unlink(name, dir_fd=target)


def _link(to: str, name: str, directory: int) -> None:
    try:
        os.symlink(to, name, dir_fd=directory)
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        os.symlink(to, name, dir_fd=directory)
