"""The guest's network: interfaces, routes and neighbours as the host wants them, by netlink.

The host's namespace has found its IPv6 addresses to be unique, and the guest has the same ones with the same
MAC address: it does not look for duplicates again, during which an address could not be used.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kata_agent.guest.errors import GuestError, InvalidRequestError, NotFoundError
from kata_agent.guest.netlink import CREATE, REPLACE, RouteSocket, attributes, parse_attributes
from kata_agent.protos import agent_pb2, types_pb2

_NEWLINK, _GETLINK, _SETLINK = 16, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _GETROUTE = 24, 26
_NEWNEIGH = 28

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, to, from, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type

_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_NO_DAD, _NO_PREFIX_ROUTE = 0x02, 0x200  # IFA_F_*
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 2, 4, 5, 6, 7, 8
_RTAX_MTU = 2
_NDA_DST, _NDA_LLADDR = 1, 2
_UP, _NO_ARP = 0x1, 0x80
_MAIN, _BOOT, _UNICAST, _PERMANENT = 254, 3, 1, 0x80
_SCOPE_LINK = 253
_DEFAULT_METRIC_V6 = 1024
_IPV6 = Path("/proc/sys/net/ipv6/conf")


class Link(NamedTuple):
    """A network interface as the kernel has it; address in the usual text form; flags: IFF_*."""

    number: int
    name: str
    address: str
    mtu: int
    flags: int


class Address(NamedTuple):
    """An address of an interface as the kernel has it. flags: IFA_F_*."""

    link: int
    family: int
    packed: bytes
    prefix: int
    scope: int
    flags: int


def update_interface(wanted: types_pb2.Interface) -> types_pb2.Interface:
    """Give the interface with that hardware address its name, addresses and MTU, and switch it on.

    Where none has that hardware address, the interface of that name gets it: it comes from a template.

    Raises:
        NotFoundError: there is no such interface. InvalidRequestError: an address is malformed.
        GuestError: the kernel refused.
    """
    hardware = _hardware(wanted.hwAddr)
    addresses = [_wanted_address(address) for address in wanted.IPAddresses]
    with RouteSocket() as kernel:
        link = _find_or_none(kernel, address=_hardware_text(hardware)) or _find(kernel, name=wanted.name)
        if wanted.name and link.name != wanted.name:
            _make_room(kernel, wanted.name)
        _set_flags(kernel, link.number, 0, _UP)
        changes = [(_IFLA_NAME, wanted.name.encode() + b"\0")] if wanted.name else []
        if wanted.mtu:
            changes.append((_IFLA_MTU, struct.pack("=I", wanted.mtu)))
        if link.address != _hardware_text(hardware):
            changes.append((_IFLA_ADDRESS, hardware))
        header = _LINK.pack(socket.AF_UNSPEC, 0, link.number, wanted.raw_flags & _NO_ARP, _NO_ARP)
        _change(kernel, _SETLINK, header + attributes(changes), f"set up interface {wanted.name}")
        _trust_addresses(wanted.name or link.name)
        _set_flags(kernel, link.number, _UP, _UP)
        _set_addresses(kernel, link.number, wanted.name or link.name, addresses)
    return wanted


def _trust_addresses(name: str) -> None:
    """Have no address of the interface checked for duplicates, nor the one that the kernel makes itself."""
    with suppress(FileNotFoundError):  # a kernel without IPv6
        (_IPV6 / name / "accept_dad").write_text("0")


def _set_addresses(kernel: RouteSocket, index: int, name: str, wanted: list[Address]) -> None:
    """Add these addresses to the interface, in their order, and remove what a template left."""
    ipv6 = _has_ipv6(name)
    kept = {(address.family, address.packed, address.prefix) for address in wanted}
    for address in _addresses(kernel):
        own = address.family == socket.AF_INET6 and address.scope == _SCOPE_LINK
        if address.link == index and not own and address[1:4] not in kept:
            _change_address(kernel, _DELADDR, address, f"remove address {_text(address)}", 0)
    for address in wanted:
        if address.family == socket.AF_INET or ipv6:
            what = f"add address {_text(address)} to {name}"
            _change_address(kernel, _NEWADDR, address._replace(link=index), what, CREATE | REPLACE)


def _has_ipv6(name: str) -> bool:
    """Whether an interface can have IPv6 addresses: the guest may have it switched off."""
    try:
        return (_IPV6 / name / "disable_ipv6").read_text().strip() == "0"
    except FileNotFoundError:
        return False


def _make_room(kernel: RouteSocket, name: str) -> None:
    """Move another interface of that name out of the way: two of them may swap their names."""
    for link in _links(kernel):
        if link.name == name:
            _set_flags(kernel, link.number, 0, _UP)
            header = _LINK.pack(socket.AF_UNSPEC, 0, link.number, 0, 0)
            renamed = attributes([(_IFLA_NAME, f"kata{link.number}".encode() + b"\0")])
            _change(kernel, _SETLINK, header + renamed, f"rename interface {name}")


def _set_flags(kernel: RouteSocket, index: int, flags: int, mask: int) -> None:
    header = _LINK.pack(socket.AF_UNSPEC, 0, index, flags, mask)
    _change(kernel, _SETLINK, header, f"switch interface {index}")


def _wanted_address(wanted: types_pb2.IPAddress) -> Address:
    family, packed = _ip(wanted.address)
    flags = wanted.flags & _NO_PREFIX_ROUTE | (_NO_DAD if family == socket.AF_INET6 else 0)
    return Address(0, family, packed, _prefix(wanted.mask, packed), 0, flags)


def _change_address(kernel: RouteSocket, kind: int, address: Address, what: str, flags: int) -> None:
    header = _ADDRESS.pack(address.family, address.prefix, 0, 0, address.link)
    pairs = [(_IFA_LOCAL, address.packed), (_IFA_ADDRESS, address.packed)]
    if kind == _NEWADDR:
        pairs.append((_IFA_FLAGS, struct.pack("=I", address.flags)))
    _change(kernel, kind, header + attributes(pairs), what, flags)


def _text(address: Address) -> str:
    return f"{socket.inet_ntop(address.family, address.packed)}/{address.prefix}"


def _addresses(kernel: RouteSocket) -> Iterator[Address]:
    for body in kernel.dump(_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, prefix, flags, scope, index = _ADDRESS.unpack_from(body)
        found = parse_attributes(body[_ADDRESS.size :])
        packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if _IFA_FLAGS in found:
            (flags,) = struct.unpack("=I", found[_IFA_FLAGS])
        if packed:
            yield Address(index, family, packed, prefix, scope, flags)


def update_routes(wanted: agent_pb2.Routes) -> agent_pb2.Routes:
    """Add or replace routes, those without a gateway first; returns all that there are then.

    Raises:
        NotFoundError: there is no such interface. InvalidRequestError: an address is malformed.
        GuestError: the kernel refused.
    """
    with RouteSocket() as kernel:
        for route in sorted(wanted.Routes, key=lambda route: bool(route.gateway)):
            _add_route(kernel, route)
    return list_routes()


def _add_route(kernel: RouteSocket, route: types_pb2.Route) -> None:
    family = socket.AF_INET6 if route.family == types_pb2.v6 else socket.AF_INET
    destination, to = _network(route.dest)
    pairs = [(_RTA_DST, destination)] if to else []
    source, source_prefix = b"", 0
    if route.source:
        source, length = _network(route.source)
        source_prefix = length if "/" in route.source else 0
        pairs.append((_RTA_SRC if source_prefix else _RTA_PREFSRC, source))
    if route.gateway:
        pairs.append((_RTA_GATEWAY, _ip(route.gateway)[1]))
    if route.metric:
        pairs.append((_RTA_PRIORITY, struct.pack("=I", route.metric)))
    if route.mtu:
        pairs.append((_RTA_METRICS, attributes([(_RTAX_MTU, struct.pack("=I", route.mtu))])))
    pairs.append((_RTA_OIF, struct.pack("=I", _find(kernel, name=route.device).number)))
    header = _ROUTE.pack(family, to, source_prefix, 0, _MAIN, _BOOT, route.scope, _UNICAST, route.flags)
    what = f"add route to {route.dest or 'default'} by {route.device}"
    _change(kernel, _NEWROUTE, header + attributes(pairs), what, CREATE | REPLACE)


def add_neighbors(wanted: agent_pb2.ARPNeighbors) -> None:
    """Add or replace entries of the neighbour tables.

    Raises:
        NotFoundError: there is no such interface. InvalidRequestError: an address is malformed.
        GuestError: the kernel refused.
    """
    with RouteSocket() as kernel:
        for entry in wanted.ARPNeighbors:
            family, packed = _ip(entry.toIPAddress.address)
            index = _find(kernel, name=entry.device).number
            header = _NEIGHBOUR.pack(family, index, entry.state or _PERMANENT, entry.flags & 0xFF, 0)
            pairs = [(_NDA_DST, packed)]
            if entry.lladdr:
                pairs.append((_NDA_LLADDR, _hardware(entry.lladdr)))
            what = f"add neighbour {entry.toIPAddress.address}"
            _change(kernel, _NEWNEIGH, header + attributes(pairs), what, CREATE | REPLACE)


def list_interfaces() -> agent_pb2.Interfaces:
    """All interfaces with their addresses."""
    with RouteSocket() as kernel:
        addresses: dict[int, list[types_pb2.IPAddress]] = {}
        for address in _addresses(kernel):
            entry = types_pb2.IPAddress(
                family=_family(address.family),
                address=socket.inet_ntop(address.family, address.packed),
                mask=str(address.prefix),
                flags=address.flags & _NO_PREFIX_ROUTE,
            )
            addresses.setdefault(address.link, []).append(entry)
        return agent_pb2.Interfaces(
            Interfaces=[
                types_pb2.Interface(
                    device=link.name,
                    name=link.name,
                    hwAddr=link.address,
                    mtu=link.mtu,
                    IPAddresses=addresses.get(link.number, ()),
                    raw_flags=link.flags & _NO_ARP,
                )
                for link in _links(kernel)
            ]
        )


def list_routes() -> agent_pb2.Routes:
    """The routes of the main table."""
    with RouteSocket() as kernel:
        names = {link.number: link.name for link in _links(kernel)}
        routes = []
        for body in kernel.dump(_GETROUTE, _ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
            family, to, _, _, table, _, scope, _, flags = _ROUTE.unpack_from(body)
            if table == _MAIN:
                found = parse_attributes(body[_ROUTE.size :])
                route = _route(family, to, found, names)
                route.scope, route.flags = scope, flags
                routes.append(route)
    return agent_pb2.Routes(Routes=routes)


def _route(family: int, to: int, found: dict[int, bytes], names: dict[int, str]) -> types_pb2.Route:
    route = types_pb2.Route(family=_family(family))
    if _RTA_DST in found:
        route.dest = f"{socket.inet_ntop(family, found[_RTA_DST])}/{to}"
    if _RTA_GATEWAY in found:
        route.gateway = socket.inet_ntop(family, found[_RTA_GATEWAY])
    if _RTA_PREFSRC in found:
        route.source = socket.inet_ntop(family, found[_RTA_PREFSRC])
    if _RTA_OIF in found:
        route.device = names.get(struct.unpack("=I", found[_RTA_OIF])[0], "")
    if _RTA_PRIORITY in found:
        (metric,) = struct.unpack("=I", found[_RTA_PRIORITY])
        route.metric = 0 if family == socket.AF_INET6 and metric == _DEFAULT_METRIC_V6 else metric
    metrics = parse_attributes(found.get(_RTA_METRICS, b""))
    if _RTAX_MTU in metrics:
        (route.mtu,) = struct.unpack("=I", metrics[_RTAX_MTU])
    return route


def _links(kernel: RouteSocket) -> list[Link]:
    links = []
    for body in kernel.dump(_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, _, index, flags, _ = _LINK.unpack_from(body)
        found = parse_attributes(body[_LINK.size :])
        (mtu,) = struct.unpack("=I", found.get(_IFLA_MTU, bytes(4)))
        name = found.get(_IFLA_NAME, b"").rstrip(b"\0").decode(errors="replace")
        links.append(Link(index, name, _hardware_text(found.get(_IFLA_ADDRESS, b"")), mtu, flags))
    return links


def _find(kernel: RouteSocket, *, name: str) -> Link:
    link = _find_or_none(kernel, name=name)
    if link is None:
        raise NotFoundError(f"the guest has no network interface {name!r}")
    return link


def _find_or_none(kernel: RouteSocket, *, name: str = "", address: str = "") -> Link | None:
    for link in _links(kernel):
        if (name and link.name == name) or (address and link.address == address):
            return link
    return None


def _change(kernel: RouteSocket, kind: int, body: bytes, what: str, flags: int = 0) -> None:
    try:
        kernel.change(kind, body, flags)
    except OSError as error:
        raise GuestError(f"{what}: {error.strerror}") from error


def _ip(text: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return family, socket.inet_pton(family, text)
    except OSError:
        raise InvalidRequestError(f"{text!r} is not an IP address") from None


def _network(text: str) -> tuple[bytes, int]:
    """Address and prefix length of "10.0.0.0/8"; a bare address is whole, nothing is the default route."""
    if not text:
        return b"", 0
    address, slash, mask = text.partition("/")
    _, packed = _ip(address)
    return packed, _prefix(mask, packed) if slash else len(packed) * 8


def _prefix(mask: str, packed: bytes) -> int:
    if not mask.isdecimal() or int(mask) > len(packed) * 8:
        raise InvalidRequestError(f"{mask!r} is not a prefix length")
    return int(mask)


def _family(family: int) -> types_pb2.IPFamily:
    return types_pb2.v6 if family == socket.AF_INET6 else types_pb2.v4


def _hardware(text: str) -> bytes:
    try:
        packed = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        packed = b""
    if len(packed) != 6:
        raise InvalidRequestError(f"{text!r} is not a hardware address")
    return packed


def _hardware_text(packed: bytes) -> str:
    return packed.hex(":")
