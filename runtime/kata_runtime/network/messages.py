"""From the kernel's messages, as pyroute2 parses them, to the values of `model`. No I/O.

A message is a mapping with the fields of its header and, under "attrs", pairs of an attribute's name and
value.
"""

from __future__ import annotations

import sys

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import (
    RT_TABLE_LOCAL,
    RTPROT_KERNEL,
    Address,
    Link,
    Namespace,
    Neighbour,
    Qdisc,
    Route,
)
from kata_runtime.network.netlink import attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Message = Mapping[str, Any]

_MODES = {"tun": 3, "netkit": 5}
"""IFLA_TUN_TYPE, IFLA_NETKIT_MODE (linux/if_link.h), by the kind that has it."""

_MULTICAST = 5  # RTN_MULTICAST as the type of a neighbour: an entry that the kernel makes for itself


def namespace(
    *,
    links: Iterable[Message],
    addresses: Iterable[Message],
    routes: Iterable[Message],
    neighbours: Iterable[Message],
    qdiscs: Iterable[Message],
    rules: Iterable[Message],
) -> Namespace:
    """A namespace from the answers to all dumps; links, routes and addresses in the kernel's order.

    Raises:
        NetworkError: the name of an interface is no text.
    """
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
        name=_name(message),
        kind=kind,
        mac=_get(message, "IFLA_ADDRESS", ""),
        mtu=_get(message, "IFLA_MTU", 0),
        flags=message["flags"],
        addresses=tuple(addresses),
        mode=_mode(kind, _get(info, "IFLA_INFO_DATA", b"")),
        queue_length=_get(message, "IFLA_TXQLEN", 0),
    )


def _name(message: Message) -> str:
    """An interface's name, of which the kernel only says that it has no slash, colon or space."""
    name = _get(message, "IFLA_IFNAME")
    if not isinstance(name, str):  # pyroute2 leaves bytes that are no UTF-8
        raise NetworkError(f"cannot read the interface {name!r}: its name is not UTF-8; rename it")
    return name


def _mode(kind: str, data: bytes) -> int:
    """The mode of a tun or netkit, from what the kind says of the interface; -1 where it says nothing."""
    if kind not in _MODES:
        return 0
    modes = [value for number, value in attributes(data) if number == _MODES[kind]]
    return int.from_bytes(modes[0][:4], sys.byteorder) if modes else -1


def _address(message: Message) -> Address:
    return Address(
        # IFA_ADDRESS is the other end's on a point-to-point link.
        address=_get(message, "IFA_LOCAL") or _get(message, "IFA_ADDRESS"),
        prefix=message["prefixlen"],
        scope=message["scope"],
        flags=_get(message, "IFA_FLAGS", message["flags"]),
        broadcast=_get(message, "IFA_BROADCAST", ""),
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
