"""The archive format of an initramfs: cpio "newc".

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import IO, NamedTuple

from kata_runtime.image.tree import Entry, Tree

TRAILER = "TRAILER!!!"
_HEADER = 110
_MAGICS = (b"070701", b"070702")
_PIECE = 1 << 20
_LONGEST = 4096
"""Of a path, and of what a link names (PATH_MAX)."""


class Member(NamedTuple):
    """A member of an archive. data: what a symbolic link names, of others empty."""

    path: str
    mode: int
    data: bytes


def pack(tree: Tree) -> bytes:
    """Return the archive of a tree: sorted by path, owned by root, without times."""
    entries = list(tree.sorted())
    parts = [_member(number, path, entry) for number, (path, entry) in enumerate(entries, start=1)]
    return b"".join(parts) + _member(0, TRAILER, Entry(0))


def _member(number: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def members(archive: IO[bytes]) -> Iterator[Member]:
    """Yield the members of an archive up to its end, or to what is none.

    Raises:
        ValueError: a header is malformed. OSError, EOFError: the file cannot be read, or is cut off.
    """
    while (header := archive.read(_HEADER)).startswith(_MAGICS):
        numbers = [int(header[at : at + 8], 16) for at in range(6, _HEADER, 8)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        if not 0 < length <= _LONGEST or (stat.S_ISLNK(mode) and size > _LONGEST):
            raise ValueError("a name is longer than paths are, or none")
        name = archive.read(length + -(_HEADER + length) % 4)
        path = name[: length - 1].decode(errors="surrogateescape").removeprefix("./")
        if path == TRAILER:
            return
        left, data = size + -size % 4, b""
        while left > 0 and (piece := archive.read(min(left, _PIECE))):
            left -= len(piece)
            data += piece if stat.S_ISLNK(mode) else b""
        yield Member(path, mode, data[:size])
