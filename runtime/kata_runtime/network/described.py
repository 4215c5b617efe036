"""A network that a file describes: taps that the operator has made, and what the guest has at each.

Kata calls it Directly Attachable Network. Names and defaults are those of its runtime in Rust (4.1,
crates/resource/src/network/dan.rs). What is not honoured is refused: only taps of the host are attached.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from socket import AF_INET, AF_INET6
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import IFF_NOARP, IFF_UP, TUN_TAP, Address, Link, Neighbour, Route
from kata_runtime.network.plan import DIRECT, MAX_TAP_MTU, Attachment, Plan

MAX_QUEUES = 64
"""As many descriptors come with one of the broker's answers."""

_LARGEST = 1 << 20
_LEAST_MTU = 68

_Name = Annotated[str, Field(pattern=r"^[^/\s:%]{1,15}$")]
_Mac = Annotated[str, Field(pattern=r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")]
_IpAddress = IPv4Address | IPv6Address | Literal[""]
_Interface = IPv4Interface | IPv6Interface


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Device(_Object):
    type: Literal["host-tap"]
    tap_name: _Name
    queue_num: int = Field(0, ge=0, le=MAX_QUEUES)
    queue_size: Literal[0, 256] = 0


class _GuestInterface(_Object):
    ip_addresses: tuple[_Interface, ...]
    mtu: int = Field(1500, ge=_LEAST_MTU, le=MAX_TAP_MTU)
    ntype: Literal["", "tuntap"] = ""
    flags: Literal[0, 0x80] = 0


class _Route(_Object):
    dest: IPv4Network | IPv6Network | Literal[""] = ""
    gateway: _IpAddress = ""
    source: _IpAddress = ""
    scope: int = Field(0, ge=0, le=255)
    flags: Literal[0, 4] = 0
    mtu: int = Field(0, ge=0, le=MAX_TAP_MTU)

    @property
    def family(self) -> int:
        """Of what it names first; IPv4 where it names nothing."""
        named = next((value for value in (self.dest, self.gateway, self.source) if value), None)
        return AF_INET6 if named is not None and named.version == 6 else AF_INET


class _Neighbour(_Object):
    ip_address: _Interface
    hardware_addr: _Mac
    state: Literal[0, 0x80] = 0x80
    flags: int = Field(0, ge=0, le=255)


class _NetworkInfo(_Object):
    interface: _GuestInterface
    routes: tuple[_Route, ...] = ()
    neighbors: tuple[_Neighbour, ...] = ()


class _Tap(_Object):
    name: _Name
    guest_mac: _Mac = Field(default_factory=lambda: bytes([0x02, *os.urandom(5)]).hex(":"))
    device: _Device
    network_info: _NetworkInfo


class _File(_Object):
    netns: Literal[None, ""] = None
    devices: Annotated[tuple[_Tap, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Described:
    """What a file describes. queues: pairs of each attachment of the plan, 0 for the configured number."""

    plan: Plan
    queues: tuple[int, ...]


def read(path: str) -> Described:
    """What a file describes.

    Raises:
        NetworkError: it is not root's alone, or says what cannot be honoured; the message names it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise NetworkError(f"cannot read the network of {path}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        for facts in (os.fstat(descriptor), os.stat(os.path.dirname(path))):
            if facts.st_uid or facts.st_mode & 0o022:
                raise NetworkError(
                    f"cannot take the network of {path}: others than root can write it, or its directory; "
                    "give both to root, with the modes 0600 and 0700"
                )
        return parse(path, file.read(_LARGEST))


def parse(path: str, data: bytes) -> Described:
    """What the bytes of a file describe. path: for messages. Raises NetworkError."""
    try:
        devices = _File.model_validate_json(data).devices
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise NetworkError(
            f"cannot take the network of {path}: {place}: {first['msg']}; taps of the host are attached, "
            'by devices of the type "host-tap" without netns, and nothing else'
        ) from None
    for what in ("name", "guest_mac"):
        if len({getattr(device, what) for device in devices}) < len(devices):
            raise NetworkError(f"cannot take the network of {path}: two devices have one {what}")
    numbered = list(enumerate(devices, 1))
    routes = [_route(index, route) for index, tap in numbered for route in tap.network_info.routes]
    return Described(
        Plan(
            tuple(Attachment(_link(index, tap), tap.device.tap_name, DIRECT) for index, tap in numbered),
            tuple(sorted(routes, key=lambda route: bool(route.gateway))),
            tuple(
                _neighbour(index, entry) for index, tap in numbered for entry in tap.network_info.neighbors
            ),
        ),
        tuple(tap.device.queue_num for tap in devices),
    )


def _link(index: int, tap: _Tap) -> Link:
    interface = tap.network_info.interface
    addresses = tuple(Address(str(entry.ip), entry.network.prefixlen) for entry in interface.ip_addresses)
    flags = IFF_UP | (interface.flags & IFF_NOARP)
    return Link(index, tap.name, "tun", tap.guest_mac, interface.mtu, flags, addresses, TUN_TAP)


def _route(index: int, route: _Route) -> Route:
    return Route(
        route.family,
        str(route.dest) if route.dest and route.dest.prefixlen else "",
        index,
        gateway=str(route.gateway),
        source=str(route.source),
        scope=route.scope,
        flags=route.flags,
        mtu=route.mtu,
    )


def _neighbour(index: int, entry: _Neighbour) -> Neighbour:
    return Neighbour(index, str(entry.ip_address.ip), entry.hardware_addr, flags=entry.flags)
