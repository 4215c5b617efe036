"""A unikernel's file: what is understood, and that nothing else is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.solo5.manifest import (
    BlockProperties,
    Device,
    NetProperties,
    attached_manifest,
    check_devices,
    parse_manifest,
)
from kata_hypervisor.solo5.unikernel_file import Segment, check_target, read_unikernel
from solo5_file import AT, CODE, abi_note, entry, manifest_note, reader, unikernel_file

BLOCK, NET = entry("storage", 1), entry("service", 2)


def test_a_good_file_is_understood() -> None:
    unikernel = read_unikernel(reader(unikernel_file(manifest=manifest_note(NET, BLOCK))))
    assert (unikernel.target, unikernel.version, unikernel.entry) == ("hvt", 2, AT)
    assert unikernel.devices == (Device(1, "service", "net"), Device(2, "storage", "block"))
    assert unikernel.segments == (Segment(AT, len(CODE), 0x1000, len(CODE), writable=False, executable=True),)
    assert unikernel.end == AT + 0x1000


GOOD = unikernel_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ELF file: it begins with b''"),
        (b"#!/bin/sh\n", "is not an ELF file: it begins with b'#!/b'"),
        (GOOD[:40], "ends within its ELF header"),
        (GOOD[:70], "ends within its program headers"),
        (GOOD[:0x2010], "ends within its notes"),
        (GOOD[:-4], "ends within its notes"),
        (GOOD[:4] + b"\x01" + GOOD[5:], "not a little-endian ELF file of 64 bits"),
        (unikernel_file(machine=183), "is for aarch64; supported: x86_64"),
        (unikernel_file(machine=9999), "is for ELF machine 9999"),
        (unikernel_file(kind=3), "not linked to fixed addresses"),
        (
            unikernel_file(abi=b""),
            "no note ABI1 of Solo5, so it is no Solo5 unikernel; supported: target hvt",
        ),
        (unikernel_file(manifest=b""), "no note MFT1 of Solo5"),
        (unikernel_file(abi=struct.pack("<III8s", 6, 0, 0x31494241, b"Solo5")), "ABI1 has 0 bytes, not 16"),
        (unikernel_file(abi=struct.pack("<III8s", 6, 1 << 30, 0x31494241, b"Solo5")), "is larger than its"),
        (unikernel_file(manifest=manifest_note(version=2)), "a manifest of version 2; supported: 1"),
        (unikernel_file(manifest=manifest_note(count=65)), "does not hold the 65 entries"),
        (unikernel_file(manifest=manifest_note(count=0)), "does not hold the 0 entries"),
        (unikernel_file(manifest=manifest_note(BLOCK, BLOCK)), "two devices of one name"),
        (
            unikernel_file(manifest=manifest_note(entry("gpu", 9))),
            "'gpu' of type 9; supported: 1 .block., 2 .net.",
        ),
        (unikernel_file(manifest=manifest_note(entry("a/b", 1))), "not of letters and digits: b'a/b'"),
        (unikernel_file(manifest=manifest_note(entry("a" * 68, 1))), "entry 1 of note MFT1 is damaged"),
        (
            unikernel_file(manifest=manifest_note(entry("a", 1, attached=True))),
            "entry 1 of note MFT1 is damaged",
        ),
        (unikernel_file(entry_point=0), "entry 0x0 is in none of its executable segments"),
        (unikernel_file(segments=()), "entry 0x100000 is in none"),
        (unikernel_file(segments=((1, 5, 0, 0x1000, 1, 1, 4096),)), "begins below 0x100000"),
        (unikernel_file(segments=((1, 7, 0, AT, 1, 1, 4096),)), "writable and executable at once"),
        (unikernel_file(segments=((1, 5, 0, AT, 2, 1, 4096),)), "does not fit: 2 bytes of the file in 1"),
        (unikernel_file(segments=((1, 5, 0, AT, 1, 1 << 33, 4096),)), "does not fit"),
        (unikernel_file(segments=((1, 5, 0, AT, 1, 2**64 - 1, 4096),)), "does not fit"),
        (unikernel_file(segments=((1, 5, 2**64 - 1, AT, 1, 1, 4096),)), "does not fit"),
        (unikernel_file(segments=((1, 5, 0, AT, 1, 1, 3),)), "aligned to 3 bytes, which is no power of 2"),
        (unikernel_file(segments=((1, 5, 0, AT, 1, 1, 1 << 63),)), "begins below"),
        (
            unikernel_file(segments=((1, 5, 0, AT, 1, 5000, 1), (1, 6, 0, AT + 0x1000, 1, 1, 1))),
            "below 0x102000",
        ),
    ],
)
def test_a_bad_file_names_its_fault(content: bytes, message: str) -> None:
    with pytest.raises(UnikernelError, match=message):
        read_unikernel(reader(content))


@given(st.binary(max_size=200), st.integers(0, 300), st.data())
def test_no_file_is_more_than_refused(junk: bytes, at: int, data: st.DataObject) -> None:
    content = bytearray(unikernel_file(manifest=manifest_note(NET, BLOCK)))
    at += data.draw(st.sampled_from([0, 0x2000, 0x3000]))
    content[at : at + len(junk)] = junk
    try:
        unikernel = read_unikernel(reader(bytes(content)))
    except UnikernelError:
        return
    assert all(AT <= one.address <= one.end <= 1 << 32 for one in unikernel.segments)
    assert all(one.file_size <= one.memory_size for one in unikernel.segments)
    assert all(one.name.isalnum() and 1 <= one.handle < 64 for one in unikernel.devices)


@given(st.binary(max_size=400))
def test_no_manifest_is_more_than_refused(content: bytes) -> None:
    try:
        parse_manifest(content)
    except UnikernelError as error:
        assert "MFT1" in str(error)


def test_another_target_or_version_is_refused_by_its_note() -> None:
    for note, message in (
        (abi_note(2), "ABI1 says target spt, version 2; the monitor supports target hvt, version 2"),
        (abi_note(1, 3), "ABI1 says target hvt, version 3"),
        (abi_note(77), "ABI1 says target number 77"),
    ):
        unikernel = read_unikernel(reader(unikernel_file(abi=note)))
        with pytest.raises(UnikernelError, match=message):
            check_target(unikernel, "hvt", 2, "the monitor")


DEVICES = (Device(1, "storage", "block"), Device(2, "service", "net"))


@pytest.mark.parametrize(
    ("supplied", "message"),
    [
        (
            {"service": "net"},
            "declares the block device 'storage', which is not supplied; supplied: service .net.",
        ),
        ({}, "declares the block device 'storage', which is not supplied; supplied: none"),
        (
            {"storage": "net", "service": "net"},
            "declares 'storage' as a block device, and it is supplied as net",
        ),
        (
            {"storage": "block", "service": "net", "more": "net"},
            "the net device 'more' is not in note MFT1, which declares storage .block., service .net.",
        ),
    ],
)
def test_devices_that_differ_are_refused(supplied: dict[str, str], message: str) -> None:
    with pytest.raises(UnikernelError, match=message):
        check_devices(DEVICES, supplied)  # type: ignore[arg-type]


def test_the_running_manifest_says_what_is_attached() -> None:
    properties: dict[str, BlockProperties | NetProperties] = {
        "storage": BlockProperties(1 << 20),
        "service": NetProperties(b"\2\0\0\0\0\1", 9000),
    }
    raw = attached_manifest(DEVICES, properties)
    version, count = struct.unpack_from("<II", raw)
    assert (version, count, len(raw)) == (1, 3, 8 + 3 * 104)
    first, storage, service = (raw[8 + 104 * number :][:104] for number in range(3))
    assert struct.unpack_from("<68sI", first) == (bytes(68), 1 << 30)
    assert struct.unpack("<68sIQH6xQ?7x", storage) == (b"storage".ljust(68, b"\0"), 1, 1 << 20, 512, 0, True)
    assert struct.unpack("<68sI6sH8xQ?7x", service)[2:4] == (b"\2\0\0\0\0\1", 9000)
