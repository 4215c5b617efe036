"""The manifest of a Solo5 unikernel: the devices that it declares, and what the tender fills in about them.

Source: Solo5's include/mft_abi.h (struct mft, struct mft_entry), manifest version 1, on x86_64.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kata_hypervisor.errors import UnikernelError

Kind = Literal["block", "net"]

VERSION = 1
MAX_ENTRIES = 64
BLOCK_BASIC, NET_BASIC, RESERVED_FIRST = 1, 2, 1 << 30
KINDS: Mapping[int, Kind] = {BLOCK_BASIC: "block", NET_BASIC: "net"}

HEADER = struct.Struct("<II")  # version, number of entries
ENTRY = struct.Struct("<68sI16s8s?7x")  # name, type, properties, the tender's own, attached
BLOCK = struct.Struct("<QH6x")  # capacity, block size
NET = struct.Struct("<6sH8x")  # MAC address, MTU


@dataclass(frozen=True, slots=True)
class Device:
    """A device that the unikernel declares. handle: its number in the unikernel's calls, from 1 on."""

    handle: int
    name: str
    kind: Kind


class BlockProperties(NamedTuple):
    """What a unikernel learns about a block device. capacity: bytes. block_size: bytes, a power of 2."""

    capacity: int
    block_size: int = 512

    def pack(self) -> tuple[int, bytes]:
        """The entry's type and properties."""
        return BLOCK_BASIC, BLOCK.pack(self.capacity, self.block_size)


class NetProperties(NamedTuple):
    """What a unikernel learns about a network device. mac: 6 bytes. mtu: bytes."""

    mac: bytes
    mtu: int = 1500

    def pack(self) -> tuple[int, bytes]:
        """The entry's type and properties."""
        return NET_BASIC, NET.pack(self.mac, self.mtu)


Properties = BlockProperties | NetProperties


def parse_manifest(content: bytes) -> tuple[Device, ...]:
    """Read the manifest's devices.

    content: struct mft, as it is in the note MFT1.

    Raises:
        UnikernelError: it is damaged, or declares what is not known here.
    """
    if len(content) < HEADER.size:
        raise UnikernelError(f"note MFT1 is too short for a manifest: {len(content)} bytes")
    version, entries = HEADER.unpack_from(content)
    if version != VERSION:
        raise UnikernelError(f"note MFT1 has a manifest of version {version}; supported: {VERSION}")
    if not 1 <= entries <= MAX_ENTRIES or len(content) != HEADER.size + entries * ENTRY.size:
        raise UnikernelError(f"note MFT1 does not hold the {entries} entries that it announces")
    devices = tuple(
        device
        for handle, fields in enumerate(ENTRY.iter_unpack(content[HEADER.size :]))
        if (device := _device(handle, *fields)) is not None
    )
    names = [device.name for device in devices]
    if len(set(names)) != len(names):
        raise UnikernelError("note MFT1 declares two devices of one name")
    return devices


def _device(
    handle: int, name: bytes, kind: int, properties: bytes, _own: bytes, attached: bool
) -> Device | None:
    text, end, _ = name.partition(b"\0")
    if handle == 0:
        if kind != RESERVED_FIRST or text:
            raise UnikernelError("note MFT1 does not begin with the reserved entry")
        return None
    if attached or not end:
        raise UnikernelError(f"entry {handle} of note MFT1 is damaged")
    if not (text.isascii() and text.isalnum()):
        raise UnikernelError(
            f"entry {handle} of note MFT1 has a name that is not of letters and digits: {text!r}"
        )
    if kind not in KINDS:
        known = ", ".join(f"{number} ({kind})" for number, kind in KINDS.items())
        raise UnikernelError(
            f"note MFT1 declares device {text.decode()!r} of type {kind}; supported: {known}"
        )
    return Device(handle, text.decode(), KINDS[kind])


def check_devices(devices: Sequence[Device], supplied: Mapping[str, Kind]) -> None:
    """See that what the unikernel declares is what it is given.

    supplied: the kind of each device that there is, by name.

    Raises:
        UnikernelError: the names or kinds differ.
    """
    declared = {device.name: device.kind for device in devices}
    for name, kind in declared.items():
        if name not in supplied:
            given = ", ".join(f"{key} ({value})" for key, value in supplied.items()) or "none"
            raise UnikernelError(
                f"note MFT1 declares the {kind} device {name!r}, which is not supplied; supplied: {given}"
            )
        if supplied[name] != kind:
            raise UnikernelError(
                f"note MFT1 declares {name!r} as a {kind} device, and it is supplied as {supplied[name]}"
            )
    for name, kind in supplied.items():
        if name not in declared:
            known = ", ".join(f"{key} ({value})" for key, value in declared.items()) or "no device"
            raise UnikernelError(f"the {kind} device {name!r} is not in note MFT1, which declares {known}")


def attached_manifest(devices: Sequence[Device], properties: Mapping[str, Properties]) -> bytes:
    """Write the manifest as the running unikernel reads it, with every device attached."""
    last = max((device.handle for device in devices), default=0)
    entries = [ENTRY.pack(b"", RESERVED_FIRST, b"", b"", False)] * (last + 1)
    for device in devices:
        kind, packed = properties[device.name].pack()
        entries[device.handle] = ENTRY.pack(device.name.encode(), kind, packed, b"", True)
    return HEADER.pack(VERSION, len(entries)) + b"".join(entries)
