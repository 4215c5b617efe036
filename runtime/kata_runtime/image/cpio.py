"""The archive format of an initramfs: cpio "newc".

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat

from kata_runtime.image.tree import Entry, Tree

TRAILER = "TRAILER!!!"


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
