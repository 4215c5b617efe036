"""The one reader of ELF files: what it finds in whole files, and that damage is one kind of error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor import elf
from kata_hypervisor.elf import Elf32Header, Elf64Header, Elf64Program, ElfError, ElfFile, ElfNoteHeader


def whole(*notes: tuple[bytes, int, bytes]) -> bytes:
    """A file with one program header, of notes."""
    content = b"".join(
        bytes(ElfNoteHeader(n_namesz=len(owner), n_descsz=len(text), n_type=kind))
        + owner.ljust(-(-len(owner) // 4) * 4, b"\0")
        + text.ljust(-(-len(text) // 4) * 4, b"\0")
        for owner, kind, text in notes
    )
    header = Elf64Header(e_machine=elf.EM_X86_64, e_phoff=64, e_phentsize=56, e_phnum=1)
    header.e_ident[:6] = b"\x7fELF\x02\x01"
    program = Elf64Program(p_type=elf.PT_NOTE, p_offset=120, p_filesz=len(content))
    return bytes(header) + bytes(program) + content


def opened(content: bytes) -> ElfFile:
    return ElfFile(lambda offset, size: content[offset : offset + size])


@pytest.fixture
def interpreter() -> Iterator[ElfFile]:
    """The program that runs this test."""
    descriptor = os.open(Path(sys.executable).resolve(), os.O_RDONLY)
    yield ElfFile(elf.reader_of(descriptor))
    os.close(descriptor)


def test_a_real_program_is_read(interpreter: ElfFile) -> None:
    assert (interpreter.bits, interpreter.machine) == (64, os.uname().machine)
    kinds = {program.p_type for program in interpreter.programs()}
    assert {elf.PT_LOAD, elf.PT_INTERP, elf.PT_NOTE} <= kinds
    sections = interpreter.sections()
    named = dict(zip(interpreter.names(sections), sections, strict=True))
    assert named[".dynamic"].sh_type == elf.SHT_DYNAMIC
    assert b"ld-linux" in interpreter.content(named[".interp"])
    owners = {
        note.owner
        for program in interpreter.programs()
        if program.p_type == elf.PT_NOTE
        for note in interpreter.notes(program)
    }
    assert b"GNU\0" in owners


def test_notes_are_padded_to_words_and_stop_at_damage() -> None:
    file = opened(whole((b"Xen\0", 18, b"12345"), (b"Solo5\0", 1, b""), (b"long", 2, b"more")))
    (program,) = file.programs()
    found = [(note.owner, note.kind, note.content) for note in file.notes(program)]
    assert found == [(b"Xen\0", 18, b"12345"), (b"Solo5\0", 1, b""), (b"long", 2, b"more")]
    cut = bytearray(whole((b"Xen\0", 18, b"1234")))
    cut[120 + 4] = 200
    file = opened(bytes(cut))
    (note,) = file.notes(file.programs()[0])
    assert (note.size, note.content) == (200, b"1234")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ELF file: it begins with b''"),
        (b"#!/bin/sh", "is not an ELF file: it begins with b'#!/b'"),
        (b"\x7fELF", "ends within its ELF header"),
        (b"\x7fELF\x02\x01" + bytes(57), "ends within its ELF header"),
        (b"\x7fELF\x02\x02" + bytes(60), "is not a little-endian ELF file of 32 or 64 bits"),
        (whole()[:100], "ends within its program headers"),
        (whole((b"a", 1, b"b"))[:-1], "ends within its notes"),
    ],
)
def test_damage_is_named(content: bytes, message: str) -> None:
    with pytest.raises(ElfError) as caught:
        list(opened(content).notes(opened(content).programs()[0]))
    assert str(caught.value) == message


def test_a_file_of_32_bits_has_its_own_header() -> None:
    header = Elf32Header(e_machine=elf.EM_386, e_phentsize=32)
    header.e_ident[:6] = b"\x7fELF\x01\x01"
    file = opened(bytes(header))
    assert (file.bits, file.machine, file.sections()) == (32, "i386", [])
    with pytest.raises(ElfError, match="has 0 program headers of 32 bytes; supported: 1 to 128 of 32 bytes"):
        file.programs()


def test_sizes_are_limited_before_anything_is_read() -> None:
    file = opened(whole())
    with pytest.raises(ElfError, match="bytes of notes; supported"):
        list(file.notes(Elf64Program(p_filesz=elf.MAX_NOTES + 1)))
    with pytest.raises(ElfError, match="has a section of"):
        file.content(elf.Elf64Section(sh_size=elf.MAX_SECTION + 1))


@given(st.binary(max_size=300), st.integers(0, 200))
def test_an_open_file_is_read_or_refused(noise: bytes, at: int) -> None:
    damaged = bytearray(whole((b"Xen\0", 18, b"1234")))
    damaged[at : at + len(noise)] = noise
    descriptor = os.memfd_create("elf")
    try:
        os.write(descriptor, damaged)
        file = ElfFile(elf.reader_of(descriptor))
        file.names(file.sections())
        for program in file.programs():
            list(file.notes(program))
    except ElfError as error:
        assert "\n" not in str(error)
    finally:
        os.close(descriptor)
