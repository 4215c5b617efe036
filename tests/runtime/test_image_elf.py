"""What is read from ELF files, and that broken ones are refused with one kind of error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elf_files import MAGIC, make_library, make_module
from kata_runtime.image import elf


def test_the_interpreter_needs_the_c_library() -> None:
    assert "libc.so.6" in elf.needed(Path(sys.executable).resolve().read_bytes())


def test_needed_names_keep_their_order() -> None:
    assert elf.needed(make_library("libz.so.1", "libc.so.6")) == ("libz.so.1", "libc.so.6")
    assert elf.needed(make_library()) == ()


def test_module_info_collects_values_by_key() -> None:
    info = elf.module_info(make_module(depends="virtio,virtio_ring", license="GPL", softdep="pre: crc32c"))
    assert info == {"depends": ["virtio,virtio_ring"], "license": ["GPL"], "softdep": ["pre: crc32c"]}


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", MAGIC + bytes(20)])
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
