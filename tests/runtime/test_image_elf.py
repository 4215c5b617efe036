"""What is read from ELF files, and that broken ones are refused with one kind of error."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.image import elf

MAGIC_64 = b"\x7fELF\x02\x01"


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
    body[:6] = MAGIC_64
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
        entries += struct.pack("<qQ", elf.DT_NEEDED, len(strings))
        strings += name.encode() + b"\0"
    entries += struct.pack("<qQ", 0, 0)
    return make_elf([("", 0, 0, b""), (".dynamic", 6, 2, entries), (".dynstr", 3, 0, strings)])


def test_the_interpreter_needs_the_c_library() -> None:
    assert "libc.so.6" in elf.needed(Path(sys.executable).resolve().read_bytes())


def test_needed_names_keep_their_order() -> None:
    assert elf.needed(make_library("libz.so.1", "libc.so.6")) == ("libz.so.1", "libc.so.6")
    assert elf.needed(make_library()) == ()


def test_module_info_collects_values_by_key() -> None:
    info = elf.module_info(make_module(depends="virtio,virtio_ring", license="GPL", softdep="pre: crc32c"))
    assert info == {"depends": ["virtio,virtio_ring"], "license": ["GPL"], "softdep": ["pre: crc32c"]}


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", MAGIC_64 + bytes(20)])
def test_what_is_no_elf_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="ELF"):
        elf.needed(data)


@given(st.data())
def test_damage_is_answered_or_refused_but_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(make_library("libc.so.6"))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(6, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        names = elf.needed(damaged)
        elf.module_info(damaged)
    except ValueError:
        return
    assert all(isinstance(name, str) for name in names)
