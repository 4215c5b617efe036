"""From the kernel's messages, as pyroute2 parses them, to the values of `model`. No I/O.

A message is a mapping with the fields of its header and, under "attrs", pairs of an attribute's name and
value.
"""

from __future__ import annotations

import struct

from kata_runtime.network.model import (
    RT_TABLE_LOCAL,
    RTPROT_KERNEL,
    Address,
    Filter,
    Link,
    Namespace,
    Neighbour,
    Qdisc,
    Route,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    Message = Mapping[str, Any]

_IFLA_NETKIT_MODE = 5  # linux/if_link.h
_MULTICAST = 5  # RTN_MULTICAST as the type of a neighbour: an entry that the kernel makes for itself
_ATTRIBUTE = struct.Struct("=HH")


def namespace(
    *,
    links: Iterable[Message],
    addresses: Iterable[Message],
    routes: Iterable[Message],
    neighbours: Iterable[Message],
    qdiscs: Iterable[Message],
    filters: Iterable[Message],
    rules: Iterable[Message],
) -> Namespace:
    """A namespace from the answers to all dumps; links, routes and addresses in the kernel's order."""
    by_link: dict[int, list[Address]] = {}
    for message in addresses:
        by_link.setdefault(message["index"], []).append(_address(message))
    return Namespace(
        links=tuple(_link(message, by_link.get(message["index"], ())) for message in links),
        routes=tuple(_route(message) for message in routes if _table(message) != RT_TABLE_LOCAL),
        neighbours=tuple(_neighbour(message) for message in neighbours if message["ndm_type"] != _MULTICAST),
        qdiscs=tuple(
            Qdisc(message["index"], _get(message, "TCA_KIND"), message["parent"]) for message in qdiscs
        ),
        filters=tuple(_filter(message) for message in filters if _get(message, "TCA_OPTIONS") is not None),
        rules=sum(_get(message, "FRA_PROTOCOL") != RTPROT_KERNEL for message in rules),
    )


def _get(message: Message, name: str, default: Any = None) -> Any:
    """The value of the first attribute of that name."""
    for pair in message.get("attrs", ()):
        if pair[0] == name:
            return pair[1]
    return default


def _link(message: Message, addresses: Iterable[Address]) -> Link:
    info = _get(message, "IFLA_LINKINFO", {})
    kind = _get(info, "IFLA_INFO_KIND", "")
    return Link(
        index=message["index"],
        name=_get(message, "IFLA_IFNAME"),
        kind=kind,
        mac=_get(message, "IFLA_ADDRESS", ""),
        mtu=_get(message, "IFLA_MTU", 0),
        flags=message["flags"],
        addresses=tuple(addresses),
        mode=_mode(kind, _get(info, "IFLA_INFO_DATA")),
    )


def _mode(kind: str, data: Any) -> int:
    if kind == "tun":
        mode: int = _get(data or {}, "IFLA_TUN_TYPE", 0)
        return mode
    if kind != "netkit":
        return 0
    # pyroute2 gives the attributes of a kind that it does not know as hexadecimal text.
    raw = bytes.fromhex(data.replace(":", "")) if isinstance(data, str) else b""
    modes = [value for number, value in _attributes(raw) if number == _IFLA_NETKIT_MODE]
    return int.from_bytes(modes[0][:4], "little") if modes else -1


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, raw[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _address(message: Message) -> Address:
    return Address(
        # IFA_ADDRESS is the other end's on a point-to-point link.
        address=_get(message, "IFA_LOCAL") or _get(message, "IFA_ADDRESS"),
        prefix=message["prefixlen"],
        scope=message["scope"],
        flags=_get(message, "IFA_FLAGS", message["flags"]),
    )


def _table(message: Message) -> int:
    table: int = _get(message, "RTA_TABLE", message["table"])
    return table


def _route(message: Message) -> Route:
    hops = _get(message, "RTA_MULTIPATH", ())
    destination = _get(message, "RTA_DST", "")
    other = _get(message, "RTA_VIA")
    return Route(
        family=message["family"],
        destination=f"{destination}/{message['dst_len']}" if destination else "",
        link=_get(message, "RTA_OIF", 0),
        gateway=_get(message, "RTA_GATEWAY") or (other or {}).get("addr", ""),
        source=_get(message, "RTA_PREFSRC", ""),
        scope=message["scope"],
        flags=message["flags"],
        metric=_get(message, "RTA_PRIORITY", 0),
        mtu=_get(_get(message, "RTA_METRICS", {}), "RTAX_MTU", 0),
        protocol=message["proto"],
        table=_table(message),
        type=message["type"],
        hops=len(hops) or 1,
        via=other is not None,
    )


def _neighbour(message: Message) -> Neighbour:
    return Neighbour(
        link=message["ifindex"],
        address=_get(message, "NDA_DST", ""),
        mac=_get(message, "NDA_LLADDR", ""),
        state=message["state"],
        flags=message["flags"],
    )


def _filter(message: Message) -> Filter:
    options = _get(message, "TCA_OPTIONS", {})
    target = 0
    for name in ("TCA_U32_ACT", "TCA_BPF_ACT", "TCA_MATCHALL_ACT"):
        action = _get(_get(options, name, {}), "TCA_ACT_PRIO_1", {})
        parameters = _get(_get(action, "TCA_ACT_OPTIONS", {}), "TCA_MIRRED_PARMS", {})
        target = target or parameters.get("ifindex", 0)
    return Filter(
        link=message["index"],
        kind=_get(message, "TCA_KIND"),
        priority=message["info"] >> 16,
        target=target,
    )
