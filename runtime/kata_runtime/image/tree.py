"""Files in memory: filled from packages, then written to a directory or packed into an archive.

Owners, times, and set-id bits are left behind on purpose: a tree is the same whoever made it and when.
"""

from __future__ import annotations

import posixpath
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kata_runtime.image import command
from kata_runtime.image.errors import ContentError

# Packages from before the merged /usr name these; every guest has them as links into /usr.
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
MAX_LINKS = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory, symbolic link or character device. mode: as in st_mode. data: content or target."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Tree:
    """Entries by path, relative and without a leading slash: `usr/bin/crun`.

    newest: when the last of the packages was made, in seconds since 1970, as the times of its files say.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    newest: int = 0

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Put a file."""
        self.entries[path] = Entry(stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Put a symbolic link."""
        self.entries[path] = Entry(stat.S_IFLNK | 0o777, target.encode())

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Put a directory."""
        self.entries[path] = Entry(stat.S_IFDIR | mode)

    def remove(self, path: str) -> None:
        """Take an entry out."""
        del self.entries[path]

    def read(self, path: str) -> bytes | None:
        """Return a file's content, through symbolic links, or None when there is no such file."""
        for _ in range(MAX_LINKS):
            entry = self.entries.get(path)
            if entry is None:
                return None
            if stat.S_ISREG(entry.mode):
                return entry.data
            path = normal(posixpath.join(posixpath.dirname(path), entry.data.decode()))
        return None

    def sorted(self) -> Iterator[tuple[str, Entry]]:
        """Yield all entries in the order of their paths, each after the directory that holds it."""
        complete = dict(self.entries)
        for path in self.entries:
            for parent in _parents(path):
                complete.setdefault(parent, Entry(stat.S_IFDIR | 0o755))
        yield from sorted(complete.items(), key=lambda item: item[0].split("/"))

    def add_package(self, package: Path, keep: Callable[[str], bool]) -> None:
        """Unpack those files of a .deb whose path (in the merged /usr) `keep` approves.

        Raises:
            ContentError: the archive holds something that has no place in a guest.
            ToolError: the package cannot be read.
        """
        try:
            with (
                command.stream(["dpkg-deb", "--fsys-tarfile", str(package)]) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                for member in archive:
                    path = normal(member.name)
                    self.newest = max(self.newest, int(member.mtime))
                    if not member.isdir() and keep(path):
                        self.entries[path] = self._entry(member, archive, package.name)
        except tarfile.TarError as error:
            raise ContentError(f"cannot unpack {package}: {error}: delete it and build again") from error

    def _entry(self, member: tarfile.TarInfo, archive: tarfile.TarFile, package: str) -> Entry:
        mode = member.mode & 0o777
        if member.issym():
            return Entry(stat.S_IFLNK | 0o777, member.linkname.encode())
        if member.islnk():
            original = self.entries.get(normal(member.linkname))
            if original is None:
                raise ContentError(
                    f"{package}: {member.name} is a hard link to a file that the guest does not keep"
                )
            return original
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            raise ContentError(f"{package}: {member.name} is neither a file, a link nor a directory")
        return Entry(stat.S_IFREG | mode, content.read())

    def write(self, directory: Path) -> None:
        """Write everything below a new directory. Devices are left out: devtmpfs has them."""
        directory.mkdir(mode=0o755)
        for path, entry in self.sorted():
            target = directory / path
            if stat.S_ISDIR(entry.mode):
                target.mkdir()
                target.chmod(stat.S_IMODE(entry.mode))
            elif stat.S_ISLNK(entry.mode):
                target.symlink_to(entry.data.decode())
            elif stat.S_ISREG(entry.mode):
                target.write_bytes(entry.data)
                target.chmod(stat.S_IMODE(entry.mode))


def normal(path: str) -> str:
    """Return a path as a tree names it: relative, without `.` and `..`, and with /usr merged."""
    path = posixpath.normpath("/" + path).lstrip("/")
    return f"usr/{path}" if path.partition("/")[0] in MERGED else path


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path
