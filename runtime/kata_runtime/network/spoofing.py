"""What may leave a guest: frames with its own MAC address, and its own addresses where that is asked for.

An eBPF program judges each frame that comes in at a tap, before the filter that redirects it. What passes
goes on to that filter; anything else is dropped. With addresses given, only IPv4, ARP and IPv6 pass, and
without a VLAN tag, which the kernel has taken out of the frame by then:

- IPv4 from one of the addresses;
- ARP that says nothing of others: for its own MAC address, from one of the addresses, or from 0.0.0.0 for
  one of them: a probe for another's address keeps that one from taking it (RFC 5227, 2.1.1);
- IPv6 from one of the addresses, or from the link-local one that the MAC address makes. Neighbour
  advertisements for these only; no router advertisements and no redirects. From the unspecified address only
  what asks (RFC 4861, 4862, 3810): solicitations for routers and for one of the addresses, and reports of
  multicast. Extension headers before ICMPv6 are followed, up to four, a fragment header too where it is of
  the first fragment: receivers refuse one without all headers in it (RFC 7112), and some take neighbour
  discovery that comes in fragments (RFC 6980 forbids it).

A guest may leave a checksum to the host, and says in the virtio_net_hdr where it is to be written, which the
kernel does when the frame has long passed: what was judged must not change by it. Such a frame passes only
where that place is behind the headers that are judged and the ports, and no ARP or ICMPv6 does. A kernel that
does not tell that place (see `checksum_places`) still tells where the part begins that is summed: behind the
headers, and then the place is too; but it may be at the ports.

The offsets are those of RFC 894, 826, 791, 8200 and 4861.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, ip_address

from kata_runtime.network.ebpf import Assembler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PASS, DROP = -1, 2  # TC_ACT_UNSPEC: on to the next filter; TC_ACT_SHOT

# linux/bpf.h
_STORE_BYTES, _LOAD_BYTES, _REPLACE_CHECKSUM, CHANGE_TAIL = 9, 26, 11, 38
EINVAL = struct.pack("=i", -22)
_FRAME = -62
"""Where the frame's beginning is copied to on the stack: so its addresses are aligned."""
_SCRATCH = _FRAME + 22  # the source address, once it was judged

_BEFORE, _AFTER = -8, -6
"""Where the frame's first bytes are before and after a change."""

_CONTEXT, _AT, _NEXT, _NAMED = 6, 7, 8, 9
"""Registers: the frame; offset and kind of the header that is followed next; whether it has a source."""

_VLAN_PRESENT = 20  # of struct __sk_buff, linux/bpf.h
_ETHERNET, _IPV4, _ARP, _IPV6 = 14, b"\x08\x00", b"\x08\x06", b"\x86\xdd"
_IPV4_HEADER, _ARP_PACKET, _IPV6_HEADER = 20, 28, 40
_PORTS = 6
"""Bytes of a transport header before the first place of a checksum: that of UDP."""
_ICMPV6, _FOLLOWED, _MOST_FOLLOWED = b"\x3a", (b"\x00", b"\x2b", b"\x3c"), 4
_FRAGMENT, _FRAGMENT_HEADER, _FRAGMENT_OFFSET = b"\x2c", 8, b"\xff\xf8"
_ROUTER_SOLICITATION, _SOLICITATION, _ADVERTISEMENT = b"\x85", b"\x87", b"\x88"
_ROUTER_ADVERTISEMENT, _REDIRECT = b"\x86", b"\x89"
_REPORTS = (b"\x83", b"\x84", b"\x8f")


def program(mac: str, addresses: Sequence[str] | None, *, places_told: bool = True) -> bytes:
    """The instructions for a tap.

    addresses: of the guest; None to judge the MAC address only. places_told: see `checksum_places`.
    """
    return _Program(bytes.fromhex(mac.replace(":", "")), addresses, places_told=places_told).code()


class _Program:
    def __init__(self, mac: bytes, addresses: Sequence[str] | None, *, places_told: bool) -> None:
        self._mac = mac
        self._places_told = places_told
        packed = [ip_address(address).packed for address in addresses or ()]
        self._ipv4 = [address for address in packed if len(address) == 4]
        own = link_local(mac)
        self._ipv6 = list(dict.fromkeys([own, *(address for address in packed if len(address) == 16)]))
        self._made = Assembler()
        self._judge(with_addresses=addresses is not None)

    def code(self) -> bytes:
        return self._made.code()

    def _judge(self, *, with_addresses: bool) -> None:
        made = self._made
        made.copy(_CONTEXT, 1)
        self._copy_frame(_ETHERNET)
        self._mac_at(_FRAME + 6)
        if with_addresses:
            made.load(1, _CONTEXT, _VLAN_PRESENT, 4)
            made.jump_unless(1, bytes(4), "drop")
            made.load(1, 10, _FRAME + 12, 2)
            for kind in (_IPV4, _ARP, _IPV6):
                made.jump_if(1, kind, f"kind{kind.hex()}")
            made.jump("drop")
            self._judge_ipv4()
            self._judge_arp()
            self._judge_ipv6()
        else:
            made.move(_AT, _ETHERNET)
            self._hold_checksum(0)
        made.label("pass")
        made.leave(PASS)
        made.label("drop")
        made.leave(DROP)

    def _judge_ipv4(self) -> None:
        made = self._made
        made.label(f"kind{_IPV4.hex()}")
        self._copy_frame(_ETHERNET + _IPV4_HEADER)
        made.load(1, 10, _FRAME + 26, 4)
        for address in self._ipv4:
            made.jump_if(1, address, "ipv4")
        made.jump("drop")
        if self._ipv4:  # the kernel refuses what is never reached
            made.label("ipv4")
            made.move(_AT, _ETHERNET + _IPV4_HEADER)
            self._hold_checksum(_PORTS)
            made.jump("pass")

    def _judge_arp(self) -> None:
        made = self._made
        made.label(f"kind{_ARP.hex()}")
        self._copy_frame(_ETHERNET + _ARP_PACKET)
        made.load(1, 10, _FRAME + 14, 4)
        made.jump_unless(1, b"\x00\x01" + _IPV4, "drop")
        made.load(1, 10, _FRAME + 18, 2)
        made.jump_unless(1, b"\x06\x04", "drop")
        self._mac_at(_FRAME + 22)
        self._hold_checksum(None)
        for address in self._ipv4:
            other = made.unique("arp")
            self._jump_unless_sender(address, other)
            made.jump("pass")
            made.label(other)
        self._jump_unless_sender(bytes(4), "drop")
        made.load(1, 10, _FRAME + 38, 4)
        for address in self._ipv4:
            made.jump_if(1, address, "pass")
        made.jump("drop")

    def _jump_unless_sender(self, address: bytes, label: str) -> None:
        """Jump where the sender's address of ARP is another."""
        for offset in (0, 2):  # in halves, since it is not aligned
            self._made.load(1, 10, _FRAME + 28 + offset, 2)
            self._made.jump_unless(1, address[offset : offset + 2], label)

    def _judge_ipv6(self) -> None:
        made = self._made
        made.label(f"kind{_IPV6.hex()}")
        self._copy_frame(_ETHERNET + _IPV6_HEADER)
        made.move(_NAMED, 1)
        self._jump_if_own("ipv6 source")
        made.move(_NAMED, 0)
        self._jump_unless_address(bytes(16), "drop")
        made.label("ipv6 source")
        made.load(_NEXT, 10, _FRAME + 20, 1)
        made.move(_AT, _ETHERNET + _IPV6_HEADER)
        for _ in range(_MOST_FOLLOWED):
            self._follow_header()
        made.jump_if(_NEXT, _ICMPV6, "icmpv6")
        for kind in (*_FOLLOWED, _FRAGMENT):
            made.jump_if(_NEXT, kind, "drop")
        made.label("other")
        made.jump_if(_NAMED, b"\x00", "drop")
        self._hold_checksum(_PORTS)
        made.jump("pass")
        made.label("icmpv6")
        self._judge_icmpv6()

    def _follow_header(self) -> None:
        made = self._made
        follow, fragment, end = made.unique("follow"), made.unique("fragment"), made.unique("end")
        made.jump_if(_NEXT, _ICMPV6, "icmpv6")
        made.jump_if(_NEXT, _FRAGMENT, fragment)
        for kind in _FOLLOWED:
            made.jump_if(_NEXT, kind, follow)
        made.jump("other")
        made.label(fragment)
        self._copy(_AT, _FRAME, 4)
        made.load(1, 10, _FRAME + 2, 2)
        made.mask(1, _FRAGMENT_OFFSET)
        made.jump_unless(1, bytes(2), "other")
        made.load(_NEXT, 10, _FRAME, 1)
        made.add(_AT, _FRAGMENT_HEADER)
        made.jump(end)
        made.label(follow)
        self._copy(_AT, _FRAME, 2)
        made.load(_NEXT, 10, _FRAME, 1)
        made.load(1, 10, _FRAME + 1, 1)
        made.add(1, 1)
        made.shift_left(1, 3)
        made.add_register(_AT, 1)
        made.label(end)

    def _judge_icmpv6(self) -> None:
        made = self._made
        self._hold_checksum(None)
        self._copy(_AT, _FRAME, 1)
        made.load(_NEXT, 10, _FRAME, 1)
        for kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
            made.jump_if(_NEXT, kind, "drop")
        made.jump_if(_NEXT, _ADVERTISEMENT, "target")
        made.jump_unless(_NAMED, b"\x00", "pass")
        for kind in (_ROUTER_SOLICITATION, *_REPORTS):
            made.jump_if(_NEXT, kind, "pass")
        made.jump_unless(_NEXT, _SOLICITATION, "drop")
        made.label("target")
        made.add(_AT, 8)
        self._copy(_AT, _SCRATCH, 16)
        self._jump_if_own("pass")
        made.jump("drop")

    def _hold_checksum(self, behind: int | None) -> None:
        """Drop a frame with a checksum that is yet to be written less than so far behind `_AT`, or at all.

        Whether there is one no field says. bpf_l4_csum_replace leaves the frame as it is then, and changes
        it else (inet_proto_csum_replace4), which is undone. bpf_skb_change_tail refuses with EINVAL to cut
        the frame before the checksum's end, or before where the part begins that is summed
        (__bpf_skb_min_len); where it does cut, the frame is dropped.
        """
        made = self._made
        changed, held = made.unique("changed"), made.unique("held")
        self._copy_start(_BEFORE)
        made.copy(1, _CONTEXT)
        for register, value in ((2, 0), (3, 0), (4, 1), (5, 2)):
            made.move(register, value)
        made.call(_REPLACE_CHECKSUM)
        made.jump_unless(0, b"\x00", "drop")
        self._copy_start(_AFTER)
        made.load(1, 10, _BEFORE, 2)
        made.load(2, 10, _AFTER, 2)
        made.jump_unless_same(1, 2, changed)
        if behind is None:
            made.jump("drop")
        else:
            made.copy(1, _CONTEXT)
            made.copy(2, _AT)
            made.add(2, behind + 1 if self._places_told else -1)
            made.move(3, 0)
            made.call(CHANGE_TAIL)
            made.jump_unless(0, EINVAL, "drop")
            made.jump(held)
        made.label(changed)
        made.copy(1, _CONTEXT)
        made.move(2, 0)
        made.copy(3, 10)
        made.add(3, _BEFORE)
        made.move(4, 2)
        made.move(5, 0)
        made.call(_STORE_BYTES)
        made.jump_unless(0, b"\x00", "drop")
        made.label(held)

    def _copy_start(self, target: int) -> None:
        """Copy the frame's first two bytes to the stack."""
        self._made.move(2, 0)
        self._copy(None, target, 2)

    def _jump_if_own(self, label: str) -> None:
        """Jump where the address in the frame's place of a source, or its copy, is one of the guest's."""
        for address in self._ipv6:
            other = self._made.unique("ipv6")
            self._jump_unless_address(address, other)
            self._made.jump(label)
            self._made.label(other)

    def _jump_unless_address(self, address: bytes, label: str) -> None:
        made = self._made
        for offset in (0, 8):
            made.load(1, 10, _SCRATCH + offset, 8)
            made.constant(2, address[offset : offset + 8])
            made.jump_unless_same(1, 2, label)

    def _mac_at(self, offset: int) -> None:
        """Drop unless the MAC address there is the guest's."""
        made = self._made
        made.load(1, 10, offset, 4)
        made.jump_unless(1, self._mac[:4], "drop")
        made.load(1, 10, offset + 4, 2)
        made.jump_unless(1, self._mac[4:], "drop")

    def _copy_frame(self, length: int) -> None:
        """Copy the frame's beginning to the stack; drop a frame that is shorter."""
        self._made.move(2, 0)
        self._copy(None, _FRAME, length)

    def _copy(self, at: int | None, target: int, length: int) -> None:
        made = self._made
        made.copy(1, _CONTEXT)
        if at is not None:
            made.copy(2, at)
        made.copy(3, 10)
        made.add(3, target)
        made.move(4, length)
        made.call(_LOAD_BYTES)
        made.jump_unless(0, b"\x00", "drop")


def link_local(mac: bytes) -> bytes:
    """The link-local address that a MAC address makes (RFC 4291, appendix A)."""
    identifier = bytes([mac[0] ^ 0x02]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address("fe80::").packed[:8] + identifier
