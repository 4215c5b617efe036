"""ELF files with what the image's builder reads of them, made by the format's specification."""

from __future__ import annotations

import struct

MAGIC = b"\x7fELF\x02\x01"
"""64 bits, little-endian."""

DT_NEEDED = 1


def make_elf(sections: list[tuple[str, int, int, bytes]]) -> bytes:
    """Make an ELF file of sections (name, type, link, data); the first one is empty."""
    names = b"\0".join(name.encode() for name, *_ in sections) + b"\0.names\0"
    offsets, body = [], bytearray(64)
    for _, _, _, data in [*sections, ("", 0, 0, names)]:
        offsets.append(len(body))
        body += data
    table = bytearray()
    for (name, kind, link, data), offset in zip([*sections, (".names", 3, 0, names)], offsets, strict=True):
        start = names.index(name.encode() + b"\0")
        table += struct.pack("<IIQQQQIIQQ", start, kind, 0, 0, offset, len(data), link, 0, 0, 0)
    body[:6] = MAGIC
    struct.pack_into("<Q", body, 0x28, len(body))
    struct.pack_into("<HHH", body, 0x3A, 64, len(sections) + 1, len(sections))
    return bytes(body + table)


def make_module(**info: str) -> bytes:
    """Make a kernel module with this .modinfo."""
    text = b"\0".join(f"{key}={value}".encode() for key, value in info.items()) + b"\0"
    return make_elf([("", 0, 0, b""), (".modinfo", 1, 0, text)])


def make_library(*needed: str) -> bytes:
    """Make a library that needs others."""
    strings, entries = b"\0", b""
    for name in needed:
        entries += struct.pack("<qQ", DT_NEEDED, len(strings))
        strings += name.encode() + b"\0"
    entries += struct.pack("<qQ", 0, 0)
    return make_elf([("", 0, 0, b""), (".dynamic", 6, 2, entries), (".dynstr", 3, 0, strings)])
