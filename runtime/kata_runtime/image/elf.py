"""Two things from ELF files: the libraries that one needs, and the description of a kernel module.

Source: elf(5); the kernel's scripts/mod/modpost.c writes `depends=` and `softdep=` into `.modinfo`.
64-bit files only, which all supported architectures use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kata_hypervisor.elf import CLASS_64, LITTLE_ENDIAN, MAGIC, SHT_DYNAMIC, ElfError, ElfFile, string_at

DT_NEEDED = 1
_MAGIC_64 = MAGIC + bytes((CLASS_64, LITTLE_ENDIAN))


def is_elf(data: bytes) -> bool:
    """Whether these are the bytes of a 64-bit little-endian ELF file."""
    return data.startswith(_MAGIC_64)


def needed(data: bytes) -> tuple[str, ...]:
    """Return the names of the shared libraries that a program or library is linked to.

    Raises:
        ValueError: this is not an ELF file, or a broken one.
    """
    file = _open(data)
    sections = file.sections()
    names: list[str] = []
    for section in sections:
        if section.sh_type != SHT_DYNAMIC:
            continue
        if section.sh_link >= len(sections):
            raise ElfError("is a broken ELF file: a section refers to one that does not exist")
        strings, entries = file.content(sections[section.sh_link]), file.content(section)
        names += [
            string_at(strings, value)
            for tag, value in struct.iter_unpack("<qQ", entries[: len(entries) // 16 * 16])
            if tag == DT_NEEDED
        ]
    return tuple(names)


def module_info(data: bytes) -> dict[str, list[str]]:
    """Return the description of a kernel module: values by key, such as {"depends": ["virtio,virtio_ring"]}.

    Raises:
        ValueError: this is not an ELF file, or a broken one.
    """
    found: dict[str, list[str]] = {}
    file = _open(data)
    sections = file.sections()
    for name, section in zip(file.names(sections), sections, strict=True):
        if name == ".modinfo":
            for key, value in _pairs(file.content(section)):
                found.setdefault(key, []).append(value)
    return found


def _pairs(data: bytes) -> Iterator[tuple[str, str]]:
    for entry in data.split(b"\0"):
        key, equals, value = entry.decode("utf-8", "replace").partition("=")
        if equals:
            yield key, value


def _open(data: bytes) -> ElfFile:
    file = ElfFile(lambda offset, size: data[offset : offset + size])
    if file.bits != 64:
        raise ElfError("is not a 64-bit ELF file")
    return file
