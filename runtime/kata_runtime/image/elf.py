"""Two things from ELF files: the libraries that one needs, and the description of a kernel module.

Source: elf(5); the kernel's scripts/mod/modpost.c writes `depends=` and `softdep=` into `.modinfo`.
Little-endian 64-bit files only, which all supported architectures use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"\x7fELF\x02\x01"
SHT_STRTAB, SHT_DYNAMIC = 3, 6
DT_NEEDED = 1


@dataclass(frozen=True, slots=True)
class Section:
    """One section: its name, type, the index of the section it refers to, and its bytes."""

    name: str
    kind: int
    link: int
    data: bytes


def is_elf(data: bytes) -> bool:
    """Whether these are the bytes of a 64-bit little-endian ELF file."""
    return data.startswith(MAGIC)


def needed(data: bytes) -> tuple[str, ...]:
    """Return the names of the shared libraries that a program or library is linked to.

    Raises:
        ValueError: this is not an ELF file, or a broken one.
    """
    sections = _sections(data)
    names: list[str] = []
    for section in sections:
        if section.kind != SHT_DYNAMIC:
            continue
        strings = sections[section.link].data
        whole = len(section.data) // 16 * 16
        names += [
            _string(strings, value)
            for tag, value in struct.iter_unpack("<qQ", section.data[:whole])
            if tag == DT_NEEDED
        ]
    return tuple(names)


def module_info(data: bytes) -> dict[str, list[str]]:
    """Return the description of a kernel module: values by key, such as {"depends": ["virtio,virtio_ring"]}.

    Raises:
        ValueError: this is not an ELF file, or a broken one.
    """
    found: dict[str, list[str]] = {}
    for section in _sections(data):
        if section.name == ".modinfo":
            for key, value in _pairs(section.data):
                found.setdefault(key, []).append(value)
    return found


def _pairs(data: bytes) -> Iterator[tuple[str, str]]:
    for entry in data.split(b"\0"):
        key, equals, value = entry.decode("utf-8", "replace").partition("=")
        if equals:
            yield key, value


def _sections(data: bytes) -> list[Section]:
    if not is_elf(data):
        raise ValueError("not a 64-bit little-endian ELF file")
    try:
        (offset,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQI", data, offset + size * index) for index in range(count)]
        if not headers:
            return []
        names = _slice(data, headers[names_index][4], headers[names_index][5])
        sections = [
            Section(_string(names, name), kind, link, _slice(data, start, length))
            for name, kind, _flags, _address, start, length, link in headers
        ]
        if any(section.link >= len(sections) for section in sections if section.kind == SHT_DYNAMIC):
            raise ValueError("broken ELF file: a section refers to one that does not exist")
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"broken ELF file: {error}") from None
    return sections


def _slice(data: bytes, start: int, length: int) -> bytes:
    return data[start : start + length]


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.find(b"\0", offset)].decode("utf-8", "replace")
