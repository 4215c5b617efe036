"""What a file is that a VMM shall start as a kernel."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.bootable import Protocol, check_bootable
from kata_hypervisor.errors import UnikernelError
from solo5_file import abi_note, unikernel_file

ALL = tuple(Protocol)
PVH_NOTE = struct.pack("<3I4sI", 4, 4, 18, b"Xen\0", 0x100000)
OTHER_NOTE = struct.pack("<3I4s8s", 4, 6, 1, b"GNU\0", b"content!")


def protocol_of(content: bytes, able: tuple[Protocol, ...] = ALL) -> Protocol:
    descriptor = os.memfd_create("kernel")
    try:
        os.write(descriptor, content)
        return check_bootable(descriptor, "/app", "qemu", able)
    finally:
        os.close(descriptor)


def elf(notes: bytes = b"", *, bits: int = 64, machine: int = 62, count: int = 1, cut: int = 0) -> bytes:
    """An ELF file with one program header of notes."""
    identity = b"\x7fELF" + bytes((bits // 32, 1, 1))
    if bits == 64:
        header = struct.pack(
            "<16sHHIQQQIHHHHHH", identity, 2, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
        )
        program = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    else:
        header = struct.pack(
            "<16sHHIIIIIHHHHHH", identity, 2, machine, 1, 0, 52, 0, 0, 52, 32, count, 0, 0, 0
        )
        program = struct.pack("<IIIIIIII", 4, 84, 0, 0, len(notes), len(notes), 4, 4)
    whole = header + program + notes
    return whole[: len(whole) - cut]


def bzimage() -> bytes:
    content = bytearray(1024)
    content[0x1FE:0x206] = b"\x55\xaa\0\0HdrS"
    return bytes(content)


def multiboot(at: int = 8) -> bytes:
    return bytes(at) + struct.pack("<III", 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) & 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("content", "protocol"),
    [
        (bzimage(), Protocol.LINUX),
        (multiboot(), Protocol.MULTIBOOT),
        (elf() + multiboot(0), Protocol.MULTIBOOT),
        (elf(PVH_NOTE), Protocol.PVH),
        (elf(OTHER_NOTE + PVH_NOTE), Protocol.PVH),
        (elf(PVH_NOTE, bits=32, machine=3), Protocol.PVH),
        (elf(OTHER_NOTE), Protocol.ELF_64),
    ],
)
def test_what_it_is(content: bytes, protocol: Protocol) -> None:
    assert protocol_of(content) is protocol


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "it is no kernel: it begins with b'text'"),
        (b"", "it is no kernel: it begins with b''"),
        (multiboot(8192), "it is no kernel"),
        (multiboot()[:-1] + b"\0", "it is no kernel"),
        (elf(machine=183), "it is an ELF file for aarch64, not for x86"),
        (elf(machine=9), "it is an ELF file for ELF machine 9, not for x86"),
        (elf(count=129), "it has 129 program headers of 56 bytes; supported: 1 to 128 of 56"),
        (elf(cut=20), "ends within its program headers"),
        (b"\x7fELF\x03" + bytes(100), "it is not a little-endian ELF file of 32 or 64 bits"),
        (elf(bits=32), "of 32 bits without the PVH note"),
        (unikernel_file(abi=abi_note(1)), "its note ABI1 says target hvt, version 2"),
        (unikernel_file(abi=abi_note(77, 9)), "its note ABI1 says target number 77, version 9"),
    ],
)
def test_what_it_is_not(content: bytes, message: str) -> None:
    with pytest.raises(UnikernelError) as caught:
        protocol_of(content)
    reason, _, known = str(caught.value).partition("; qemu starts: ")
    assert reason.startswith("cannot run the unikernel /app: ")
    assert message in reason
    assert known.startswith("a Linux bzImage, a multiboot kernel, ")


def test_what_another_monitor_starts_is_named() -> None:
    with pytest.raises(UnikernelError) as caught:
        protocol_of(elf(), (Protocol.LINUX, Protocol.MULTIBOOT))
    assert str(caught.value) == (
        "cannot run the unikernel /app: it is an ELF kernel of 64 bits; "
        "qemu starts: a Linux bzImage, a multiboot kernel"
    )


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_file_is_more_than_refused(noise: bytes, at: int) -> None:
    content = bytearray(elf(OTHER_NOTE + PVH_NOTE))
    content[at : at + len(noise)] = noise
    try:
        assert protocol_of(bytes(content)) in ALL
    except UnikernelError as error:
        assert "\n" not in str(error)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(UnikernelError, match="Is a directory"):
            check_bootable(descriptor, "/app", "qemu", ALL)
    finally:
        os.close(descriptor)
