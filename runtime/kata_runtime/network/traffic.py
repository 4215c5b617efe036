"""Messages of traffic control, as far as this runtime sends and reads them.

pyroute2's own class imports a module for each kind of queueing discipline and filter: as much as all else
that is used of it. Options are therefore bytes here, made by `redirecting` and `judging`.

Sources: linux/rtnetlink.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import struct

from kata_runtime.network.library import nlmsg
from kata_runtime.network.netlink import attribute

NEW_QDISC, DELETE_QDISC, GET_QDISC, NEW_FILTER = 36, 37, 38, 44
INGRESS, ROOT = 0xFFFF0000, 0xFFFFFFFF

_U32_CLASSID, _U32_SELECTOR, _U32_ACTION = 1, 5, 7
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_DIRECT = 6, 7, 8, 1
_FIRST, _KIND, _OPTIONS, _MIRRED_PARAMETERS = 1, 1, 2, 2
_STOLEN, _REDIRECT_OUT = 4, 1  # TC_ACT_STOLEN, TCA_EGRESS_REDIR
_ETH_P_ALL = 0x0300  # in network order
_TERMINAL = 1  # TC_U32_TERMINAL
_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=IIii")  # mask, value, offset, its mask
_MIRRED = struct.Struct("=IIiiiiI")  # index, capabilities, action, counters, direction, interface


class TrafficMessage(nlmsg):  # type: ignore[misc]
    """struct tcmsg with its attributes. info: of a filter, see `info`."""

    prefix = "TCA_"
    fields = (
        ("family", "B"),
        ("pad1", "B"),
        ("pad2", "H"),
        ("index", "i"),
        ("handle", "I"),
        ("parent", "I"),
        ("info", "I"),
    )
    nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "cdata"))


def info(priority: int) -> int:
    """What a filter's message says of its priority; it is for frames of all protocols."""
    return priority << 16 | _ETH_P_ALL


def redirecting(interface: int) -> bytes:
    """Options of a u32 filter that sends every frame out of another interface."""
    parameters = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _REDIRECT_OUT, interface)
    options = attribute(_OPTIONS, attribute(_MIRRED_PARAMETERS, parameters))
    action = attribute(_FIRST, attribute(_KIND, b"mirred\0") + options)
    selector = _SELECTOR.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    return (
        attribute(_U32_CLASSID, bytes(4))
        + attribute(_U32_SELECTOR, selector)
        + attribute(_U32_ACTION, action)
    )


def judging(program: int, name: str) -> bytes:
    """Options of a bpf filter that does what a program returns. program: its descriptor."""
    return (
        attribute(_BPF_FD, struct.pack("=I", program))
        + attribute(_BPF_NAME, name.encode() + b"\0")
        + attribute(_BPF_FLAGS, struct.pack("=I", _BPF_DIRECT))
    )
