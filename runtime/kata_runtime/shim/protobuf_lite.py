"""The few bytes of protobuf that the launcher reads and writes, without the protobuf library.

`start` and `delete` run for every pod and must not pay for an import of tens of milliseconds. Only varints
and length-delimited fields occur here. It is the only codec of ours: the guest's agent needs whole messages,
so kata_agent.guest.protobuf loads protobuf's C core without its Python half. Source: the protocol buffers
encoding.
"""

from __future__ import annotations


class MalformedError(ValueError):
    """These bytes are not a protobuf message."""


def varint(value: int) -> bytes:
    """Encode an unsigned integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(field: int, value: int) -> bytes:
    """A varint field; zero is left out, as proto3 does."""
    return varint(field << 3) + varint(value) if value else b""


def bytes_field(field: int, value: bytes | str) -> bytes:
    """A length-delimited field: string, bytes or an embedded message; empty is left out."""
    raw = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(raw)) + raw if raw else b""


def fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """All fields of a message in order, as (field number, value): bytes of those with a length, or integers.

    Raises:
        MalformedError: the bytes end early or use a wire type that does not exist.
    """
    found: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _read_varint(data, position)
            found.append((field, value))
            continue
        if wire_type == 2:
            length, position = _read_varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise MalformedError(f"wire type {wire_type}")
        if field == 0 or position + length > len(data):
            raise MalformedError("the message ends inside a field")
        content = data[position : position + length]
        found.append((field, content if wire_type == 2 else int.from_bytes(content, "little")))
        position += length
    return found


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MalformedError("a varint does not end")
