"""ACPI Machine Language: small encoders for what our tables say.

Source: ACPI specification 6.5, chapter 20 (AML) and 6.4 (resource data types). Each function returns bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

ZERO, ONE, BYTE, WORD, DWORD, QWORD = b"\x00", b"\x01", b"\x0a", b"\x0b", b"\x0c", b"\x0e"
NAME, STRING, SCOPE, BUFFER, PACKAGE, DEVICE = b"\x08", b"\x0d", b"\x10", b"\x11", b"\x12", b"\x5b\x82"
METHOD, RETURN, NOTIFY, REGION, FIELD = b"\x14", b"\xa4", b"\x86", b"\x5b\x80", b"\x5b\x81"
END_TAG = b"\x79\x00"

SYSTEM_IO = 1
BYTE_ACCESS = 1


def integer(value: int) -> bytes:
    """The shortest encoding of a number below 2**64."""
    if value < 2:
        return ONE if value else ZERO
    for prefix, limit, code in ((BYTE, 8, "<B"), (WORD, 16, "<H"), (DWORD, 32, "<I")):
        if value < 1 << limit:
            return prefix + struct.pack(code, value)
    return QWORD + struct.pack("<Q", value)


def string(text: str) -> bytes:
    """A string of ASCII characters."""
    return STRING + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A device's id, such as PNP0501: three letters of five bits and four hexadecimal digits, big-endian."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return DWORD + struct.pack(">I", packed)


def path(name: str) -> bytes:
    """A name of up to four characters, after a root mark where there is one."""
    root, _, segment = name.rpartition("\\")
    return (b"\\" if root or name.startswith("\\") else b"") + segment.ljust(4, "_").encode("ascii")


def named(name: str, value: bytes) -> bytes:
    """Name (name, value)"""
    return NAME + path(name) + value


def package(*elements: bytes) -> bytes:
    """Package () {elements}"""
    return PACKAGE + _sized(bytes([len(elements)]) + b"".join(elements))


def device(name: str, *members: bytes) -> bytes:
    """Device (name) {members}"""
    return DEVICE + _sized(path(name) + b"".join(members))


def scope(name: str, *members: bytes) -> bytes:
    """Scope (name) {members}"""
    return SCOPE + _sized(path(name) + b"".join(members))


def method(name: str, arguments: int, *statements: bytes) -> bytes:
    """Method (name, arguments) {statements}"""
    return METHOD + _sized(path(name) + bytes([arguments]) + b"".join(statements))


def returned(name: str) -> bytes:
    """Return (name)"""
    return RETURN + path(name)


def notify(name: str, event: int) -> bytes:
    """Notify (name, event)"""
    return NOTIFY + path(name) + integer(event)


def port_fields(name: str, start: int, fields: Sequence[str]) -> bytes:
    """OperationRegion (name, SystemIO, start, one byte for each field), and the Field of their names."""
    region = path(name) + bytes([SYSTEM_IO]) + integer(start) + integer(len(fields))
    units = b"".join(path(field) + b"\x08" for field in fields)
    return REGION + region + FIELD + _sized(path(name) + bytes([BYTE_ACCESS]) + units)


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () {descriptors}"""
    content = b"".join(descriptors) + END_TAG
    return BUFFER + _sized(integer(len(content)) + content)


def ports(start: int, count: int) -> bytes:
    """IO (Decode16, start, start, 1, count)"""
    return struct.pack("<BBHHBB", 0x47, 1, start, start, 1, count)


def memory(start: int, size: int) -> bytes:
    """Memory32Fixed (ReadWrite, start, size)"""
    return struct.pack("<BHBII", 0x86, 9, 1, start, size)


def interrupt(number: int) -> bytes:
    """Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {number}"""
    return struct.pack("<BHBBI", 0x89, 6, 0b0011, 1, number)


def _sized(content: bytes) -> bytes:
    """Put PkgLength before it, which counts itself: one byte up to 63, else 4 bits and up to three bytes."""
    if len(content) + 1 < 1 << 6:
        return bytes([len(content) + 1]) + content
    for more in (1, 2, 3):
        length = len(content) + 1 + more
        if length < 1 << (4 + 8 * more):
            return bytes([more << 6 | length & 0xF]) + (length >> 4).to_bytes(more, "little") + content
    raise ValueError(f"an AML object of {len(content)} bytes is too long")
