"""The bytes of a unikernel's file, made field by field, so that each can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable

Header = tuple[int, int, int, int, int, int, int]
"""Type, flags, offset, address, size in the file, size in memory, alignment."""

CODE = b"\xf4" * 64
AT = 0x100000


def abi_note(target: int = 1, version: int = 2) -> bytes:
    """The note ABI1."""
    return struct.pack("<III8sIIII", 6, 16, 0x31494241, b"Solo5", target, version, 0, 0)


def entry(name: str, kind: int, *, attached: bool = False) -> bytes:
    """A device of the manifest."""
    return struct.pack("<68sI16x8x?7x", name.encode(), kind, attached)


def manifest_note(*devices: bytes, version: int = 1, count: int | None = None) -> bytes:
    """The note MFT1, with the reserved entry first."""
    entries = (entry("", 1 << 30), *devices)
    content = struct.pack("<4xII", version, len(entries) if count is None else count) + b"".join(entries)
    return struct.pack("<III8s", 6, len(content), 0x3154464D, b"Solo5") + content


def unikernel_file(
    *,
    abi: bytes | None = None,
    manifest: bytes | None = None,
    segments: tuple[Header, ...] | None = None,
    entry_point: int = AT,
    machine: int = 62,
    kind: int = 2,
    code: bytes = CODE,
) -> bytes:
    """A file with one segment of code, of a page at most; every part can be given."""
    notes = [abi_note() if abi is None else abi, manifest_note() if manifest is None else manifest]
    given = segments if segments is not None else ((1, 5, 0x1000, AT, len(code), len(code), 4096),)
    offsets = [0x2000, 0x3000]
    headers = [*given]
    headers += [
        (4, 4, at, 0, len(note), len(note), 4) for at, note in zip(offsets, notes, strict=True) if note
    ]
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(kind, machine, 1, entry_point, 64, 0, 0, 64, 56, len(headers), 0, 0, 0),
    )
    table = b"".join(
        struct.pack("<IIQQQQQQ", t, f, o, a, a, fs, ms, al) for t, f, o, a, fs, ms, al in headers
    )
    content = bytearray(0x3000)
    content[: len(head + table)] = head + table
    content[0x1000 : 0x1000 + len(code)] = code
    content[0x2000 : 0x2000 + len(notes[0])] = notes[0]
    return bytes(content) + notes[1]


def reader(content: bytes) -> Callable[[int, int], bytes]:
    """Reads from the bytes as from a file."""
    return lambda offset, length: content[offset : offset + length]
