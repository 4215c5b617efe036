"""What a network namespace holds, as plain values; and how they cross from the attach program as JSON.

Addresses are in their usual text form, interfaces are named by their index. Numbers are those of
rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h and linux/neighbour.h.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from socket import AF_INET, AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80
IFA_F_DADFAILED, IFA_F_PERMANENT, IFA_F_NOPREFIXROUTE = 0x08, 0x80, 0x200
RT_SCOPE_UNIVERSE = 0
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTPROT_KERNEL = 2
RTN_UNICAST = 1
RTNH_F_ONLINK = 4
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x80
TC_H_INGRESS = 0xFFFFFFF1
NETKIT_L2, TUN_TAP = 0, 2
"""Modes of a link: netkit with Ethernet frames, and of the driver "tun" a tap."""


def family_of(address: str) -> int:
    """AF_INET or AF_INET6, from how an address or network is written."""
    return AF_INET6 if ":" in address else AF_INET


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface. flags: IFA_F_*; scope: RT_SCOPE_*; broadcast: empty for none."""

    address: str
    prefix: int
    scope: int = 0
    flags: int = IFA_F_PERMANENT
    broadcast: str = ""

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface.

    kind: of its driver, "veth", "macvlan"; empty for a device of the hardware and for loopback. mac: empty
    where it has none. flags: IFF_*. mode: of a netkit or tun, NETKIT_L2, TUN_TAP or another; 0 for other
    kinds. queue_length: frames that its transmit queue holds.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    flags: int
    addresses: tuple[Address, ...] = ()
    mode: int = 0
    queue_length: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """A route. destination: "10.0.0.0/8", empty for the default route. Empty text and 0: not given.

    family: AF_INET or AF_INET6. link: the index of its interface, 0 when it has none or several. source: the
    preferred one. flags: RTNH_F_*. hops: how many next hops it has; only one is described here. via: whether
    its gateway is of the other family.
    """

    family: int
    destination: str
    link: int
    gateway: str = ""
    source: str = ""
    scope: int = RT_SCOPE_UNIVERSE
    flags: int = 0
    metric: int = 0
    mtu: int = 0
    protocol: int = 0
    table: int = RT_TABLE_MAIN
    type: int = RTN_UNICAST
    hops: int = 1
    via: bool = False

    def __str__(self) -> str:
        default = "default (IPv6)" if self.family == AF_INET6 else "default"
        gateway = f" by {self.gateway}" if self.gateway else ""
        return f"{self.destination or default}{gateway}"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour tables. state: NUD_*; flags: NTF_*."""

    link: int
    address: str
    mac: str
    state: int = NUD_PERMANENT
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline. parent: TC_H_INGRESS or another."""

    link: int
    kind: str
    parent: int


@dataclass(frozen=True, slots=True)
class Namespace:
    """All of a network namespace that this runtime reads. rules: policy rules beyond the kernel's own."""

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    qdiscs: tuple[Qdisc, ...] = ()
    rules: int = 0

    def to_json(self) -> dict[str, Any]:
        """An object for JSON, which `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Namespace:
        """What `to_json` gave. Raises TypeError or KeyError when it is anything else."""
        return cls(
            links=tuple(link_from_json(link) for link in value["links"]),
            routes=tuple(Route(**route) for route in value["routes"]),
            neighbours=tuple(Neighbour(**neighbour) for neighbour in value["neighbours"]),
            qdiscs=tuple(Qdisc(**qdisc) for qdisc in value["qdiscs"]),
            rules=value["rules"],
        )


def link_from_json(value: dict[str, Any]) -> Link:
    """A link from JSON. Raises TypeError or KeyError when it is none."""
    addresses = tuple(Address(**address) for address in value["addresses"])
    return Link(**{**value, "addresses": addresses})
