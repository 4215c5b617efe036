"""Messages of network interfaces, as far as this runtime sends and reads them.

pyroute2's own class knows what every kind of interface can say, which costs as much as all else that is used
of it. What a kind says of itself is therefore bytes here.

Sources: linux/if_link.h, linux/if_tun.h.
"""

from __future__ import annotations

import struct

from kata_runtime.network.library import nla, nlmsg
from kata_runtime.network.netlink import attribute

NEW_LINK, DELETE_LINK, GET_LINK, SET_LINK = 16, 17, 18, 19
_MACVLAN_MODE, _MACVLAN_BRIDGE = 1, 4


class LinkMessage(nlmsg):  # type: ignore[misc]
    """struct ifinfomsg with its attributes."""

    prefix = "IFLA_"
    fields = (
        ("family", "B"),
        ("__align", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (5, "IFLA_LINK", "uint32"),
        (13, "IFLA_TXQLEN", "uint32"),
        (18, "IFLA_LINKINFO", "linkinfo"),
    )

    class linkinfo(nla):  # type: ignore[misc] # noqa: N801 - it is found by its name in nla_map
        """What an interface's kind is, and what the kind says of it, as bytes."""

        nla_map = ((1, "IFLA_INFO_KIND", "asciiz"), (2, "IFLA_INFO_DATA", "cdata"))


def macvtap() -> dict[str, object]:
    """IFLA_LINKINFO of a macvtap in mode bridge."""
    mode = attribute(_MACVLAN_MODE, struct.pack("=I", _MACVLAN_BRIDGE))
    return {"attrs": [["IFLA_INFO_KIND", "macvtap"], ["IFLA_INFO_DATA", mode]]}
