"""A guest that lies about who it is: frames of a spoofer on the tap, and what of them reaches the node."""

from __future__ import annotations

import array
import fcntl
import os
import select
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from kata_runtime.network import checksum_places, spoofing, taps
from kata_runtime.network.kernel import Kernel
from network_bed import PodNetwork

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("ip") or not shutil.which("tc"), reason="needs iproute2 (ip and tc)"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]

MAC, OTHER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:66"
OWN, OTHER = "10.9.0.2", "10.9.0.66"
OWN6, OTHER6 = "fd00:9::2", "fd00:9::66"
LOCAL6 = str(ip_address(spoofing.link_local(bytes.fromhex(MAC.replace(":", "")))))
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 0x10  # linux/if_packet.h
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h
ALL = "ff:ff:ff:ff:ff:ff"


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[PodNetwork]:
    with closing(PodNetwork(tmp_path)) as made:
        made.wire("eth0", f"{OWN}/24", f"{OWN6}/64", mac=MAC)
        yield made


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(text: str) -> bytes:
    return ip_address(text).packed


def ethernet(kind: int, payload: bytes, source: str = MAC) -> bytes:
    return mac(ALL) + mac(source) + struct.pack(">H", kind) + payload


def ipv4(source: str, protocol: int = 17, payload: bytes = bytes(8)) -> bytes:
    """A datagram whose header has its checksum, which a bridge with netfilter looks at."""
    addresses = packed(source) + packed("10.9.0.1")
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + addresses
    total = sum(struct.unpack(">10H", header))
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return header[:10] + struct.pack(">H", checksum) + addresses + payload


def arp(
    sender: str, sender_mac: str = MAC, kinds: tuple[int, int] = (1, 0x800), target: str = "10.9.0.1"
) -> bytes:
    return (
        struct.pack(">HHBBH", *kinds, 6, 4, 2) + mac(sender_mac) + packed(sender) + bytes(6) + packed(target)
    )


def tagged(frame: bytes, vlan: int, kind: int = 0x8100) -> bytes:
    return frame[:12] + struct.pack(">HH", kind, vlan) + frame[12:]


def ipv6(source: str, following: int, payload: bytes) -> bytes:
    header = struct.pack(">IHBB", 6 << 28, len(payload), following, 255)
    return header + packed(source) + packed("ff02::1") + payload


def discovery(kind: int, target: str) -> bytes:
    return bytes([kind, 0, 0, 0, 0, 0, 0, 0]) + packed(target)


def behind(count: int, following: int, payload: bytes, length: int = 0) -> tuple[int, bytes]:
    """A payload behind so many extension headers, the first of them hop-by-hop options."""
    for number in range(count):
        payload = bytes([following, length]) + bytes(6 + 8 * length) + payload
        following = 0 if number == count - 1 else 60
    return following, payload


def fragment(following: int, payload: bytes, offset: int = 0, reserved: int = 0) -> bytes:
    return bytes([following, reserved]) + struct.pack(">HI", offset << 3 | 1, 7) + payload


HONEST = {
    "IPv4": ethernet(0x0800, ipv4(OWN)),
    "ARP": ethernet(0x0806, arp(OWN)),
    "a probe of ARP": ethernet(0x0806, arp("0.0.0.0", target=OWN)),
    "IPv6": ethernet(0x86DD, ipv6(OWN6, 17, bytes(8))),
    "IPv6, link-local": ethernet(0x86DD, ipv6(LOCAL6, 17, bytes(8))),
    "an echo of IPv6": ethernet(0x86DD, ipv6(OWN6, 58, bytes([128]) + bytes(7))),
    "an advertisement": ethernet(0x86DD, ipv6(OWN6, 58, discovery(136, OWN6))),
    "a solicitation": ethernet(0x86DD, ipv6(OWN6, 58, discovery(135, OTHER6))),
    "duplicate detection": ethernet(0x86DD, ipv6("::", 58, discovery(135, LOCAL6))),
    "a router solicitation": ethernet(0x86DD, ipv6("::", 58, bytes([133]) + bytes(7))),
    "a report of multicast": ethernet(0x86DD, ipv6("::", *behind(1, 58, bytes([143]) + bytes(7)))),
    "four headers": ethernet(0x86DD, ipv6(OWN6, *behind(4, 17, bytes(8)))),
    "a fragment": ethernet(0x86DD, ipv6(OWN6, 44, fragment(17, bytes(8)))),
    "a later fragment": ethernet(0x86DD, ipv6(OWN6, 44, fragment(58, bytes([134] * 16), 1))),
    "the first fragment of an echo": ethernet(0x86DD, ipv6(OWN6, 44, fragment(58, bytes([128]) + bytes(7)))),
}
LIES = {
    "another MAC": ethernet(0x0800, ipv4(OWN), source=OTHER_MAC),
    "another IPv4": ethernet(0x0800, ipv4(OTHER)),
    "no IPv4": ethernet(0x0800, ipv4("0.0.0.0")),
    "a short IPv4": ethernet(0x0800, ipv4(OWN)[:16]),
    "ARP for another": ethernet(0x0806, arp(OTHER)),
    "a probe of ARP for another": ethernet(0x0806, arp("0.0.0.0", target=OTHER)),
    "ARP with another MAC": ethernet(0x0806, arp(OWN, OTHER_MAC)),
    "ARP of another kind": ethernet(0x0806, arp(OWN, kinds=(6, 0x800))),
    "another IPv6": ethernet(0x86DD, ipv6(OTHER6, 17, bytes(8))),
    "another's link-local": ethernet(0x86DD, ipv6("fe80::66", 17, bytes(8))),
    "data from nobody": ethernet(0x86DD, ipv6("::", 17, bytes(8))),
    "an advertisement for another": ethernet(0x86DD, ipv6(OWN6, 58, discovery(136, OTHER6))),
    "the same behind options": ethernet(0x86DD, ipv6(OWN6, *behind(1, 58, discovery(136, OTHER6), length=1))),
    "the same behind four headers": ethernet(0x86DD, ipv6(OWN6, *behind(4, 58, discovery(136, OTHER6)))),
    "the same behind five": ethernet(0x86DD, ipv6(OWN6, *behind(5, 58, discovery(136, OTHER6)))),
    "a router advertisement": ethernet(0x86DD, ipv6(LOCAL6, 58, bytes([134]) + bytes(15))),
    "the same in a fragment": ethernet(0x86DD, ipv6(LOCAL6, 44, fragment(58, bytes([134]) + bytes(15)))),
    "the same, its reserved bits set": ethernet(
        0x86DD, ipv6(LOCAL6, 44, fragment(58, bytes([134]) + bytes(79), reserved=8))
    ),
    "an advertisement for another in a fragment behind options": ethernet(
        0x86DD, ipv6(OWN6, *behind(1, 44, fragment(58, discovery(136, OTHER6))))
    ),
    "the same with options in the fragment": ethernet(
        0x86DD, ipv6(OWN6, 44, fragment(60, behind(1, 58, discovery(136, OTHER6))[1]))
    ),
    "a redirect": ethernet(0x86DD, ipv6(LOCAL6, 58, bytes([137]) + bytes(39))),
    "duplicate detection of another": ethernet(0x86DD, ipv6("::", 58, discovery(135, OTHER6))),
    "an advertisement cut short": ethernet(0x86DD, ipv6(OWN6, 58, discovery(136, OWN6)[:12])),
    "another protocol": ethernet(0x88CC, bytes(46)),
    "a tag": tagged(ethernet(0x0800, ipv4(OWN)), 5),
    "a tag of priority": tagged(ethernet(0x0806, arp(OWN)), 7 << 13),
    "a provider's tag": tagged(ethernet(0x0806, arp(OWN)), 5, 0x88A8),
    "a tag within a tag": tagged(tagged(ethernet(0x0800, ipv4(OTHER)), 2), 1),
}


def received(sock: socket.socket) -> bytes:
    """The next frame, with the VLAN tag that the kernel has taken out of it (struct tpacket_auxdata)."""
    frame, ancillary, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(20))
    for _, _, data in ancillary:
        status, tag, kind = struct.unpack("=I12xHH", data)
        if status & TP_STATUS_VLAN_VALID:
            return tagged(frame, tag, kind)
    return frame


def reaching(bed: PodNetwork, frames: dict[str, bytes], *, spoof_protection: bool = True) -> set[str]:
    """Names of the frames that come to the node, when the guest sends all of them."""
    sent = [bytes(taps.VNET_HEADER) + frame for frame in frames.values()]
    arrived = arriving(bed, sent, spoof_protection=spoof_protection)
    return {name for name, frame in frames.items() if frame in arrived}


def arriving(bed: PodNetwork, sent: list[bytes], *, spoof_protection: bool = True) -> set[bytes]:
    """Frames that come to the node, when the guest sends these, each behind its virtio_net_hdr."""
    attached = bed.attach(spoof_protection=spoof_protection)
    ((queue,),) = attached.queues
    everything = socket.htons(3)

    def listen() -> int:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything)
        sock.bind(("cni0", 3))
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        return sock.detach()

    end = ethernet(0x0806, arp(OWN) + b"the last one")
    arrived: set[bytes] = set()
    with socket.socket(fileno=bed.node.call_with_descriptor(listen)) as node:
        node.settimeout(10)
        for frame in (*sent, bytes(taps.VNET_HEADER) + end):
            select.select([], [queue], [])
            os.write(queue, frame)
        while end not in arrived:
            arrived.add(received(node))
    os.close(queue)
    bed.detach()
    return {frame for frame in arrived - {end} if frame[6:12] in (mac(MAC), mac(OTHER_MAC))}


def test_a_spoofer_reaches_nobody(bed: PodNetwork) -> None:
    before = bed.pod.state()
    assert reaching(bed, {**HONEST, **LIES}) == set(HONEST)
    assert bed.pod.state() == before


def test_without_protection_the_mac_address_is_held(bed: PodNetwork) -> None:
    malformed = ("a short IPv4", "a tag within a tag")  # which the node's bridge may drop itself
    frames = {name: frame for name, frame in LIES.items() if name not in malformed}
    assert reaching(bed, frames, spoof_protection=False) == set(frames) - {"another MAC"}


# -- checksums that a guest leaves to the host ---------------------------------------------------------------


def leave_checksums_to_software(name: str) -> None:
    """ethtool -K NAME tx off: the kernel writes what a card would, as for one that cannot, or in a tunnel."""
    off = array.array("I", [ETHTOOL_STXCSUM, 0])
    with socket.socket() as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sQ8x", name.encode(), off.buffer_info()[0]))


def unfinished(frame: bytes, start: int, offset: int, *, segment: int = 0) -> bytes:
    """A frame behind a header that leaves its checksum, of all from start on, to be written at an offset.

    segment: bytes of a segment of TCP over IPv4, where it is to be cut.
    """
    kind, length = (1, start + 20) if segment else (0, 0)
    return struct.pack("=BBHHHHH", 1, kind, length, segment, start, offset, 0) + frame


def becoming(frame: bytes, start: int, place: int, value: bytes) -> bytes:
    """A frame as `unfinished`, whose checksum at a place is a value: by its last two bytes."""
    words = sum(struct.unpack(f">{(len(frame) - start) // 2}H", frame[start:]))
    last = (~int.from_bytes(value, "big") - words) % 0xFFFF
    return unfinished(frame[:-2] + last.to_bytes(2, "big"), start, place - start)


ROOM = bytes(20)
CHANGED = {
    "a source of IPv4": becoming(
        ethernet(0x0800, ipv4(OTHER)[:12] + packed(OWN) + ipv4(OTHER)[16:] + ROOM), 20, 28, packed(OTHER)[2:]
    ),
    "a port": becoming(ethernet(0x0800, ipv4(OWN) + ROOM), 34, 36, b"\x00\x16"),
    "a sender of ARP": becoming(ethernet(0x0806, arp(OWN) + ROOM), 20, 30, packed(OTHER)[2:]),
    "an echo to an advertisement": becoming(
        ethernet(0x86DD, ipv6(LOCAL6, 58, bytes([128, 0]) + ROOM)), 40, 54, bytes([134, 0])
    ),
    "an advertisement's target": becoming(
        ethernet(0x86DD, ipv6(OWN6, 58, discovery(136, OWN6) + ROOM)), 54, 76, packed(OTHER6)[14:]
    ),
    "what follows options": becoming(
        ethernet(0x86DD, ipv6(OWN6, *behind(1, 17, bytes([134, 0]) + ROOM))), 40, 54, bytes([58, 0])
    ),
}


def test_no_checksum_changes_what_was_judged(bed: PodNetwork) -> None:
    bed.pod.call(partial(leave_checksums_to_software, "eth0"))
    beyond = () if bed.pod.call(places_are_told) else ("a port",)
    assert arriving(bed, [frame for name, frame in CHANGED.items() if name not in beyond]) == set()


def places_are_told() -> bool:
    with Kernel() as kernel:
        return checksum_places.are_told(kernel)


def test_the_question_to_the_kernel_leaves_nothing(bed: PodNetwork) -> None:
    before = bed.pod.state()
    assert bed.pod.call(places_are_told) in (True, False)
    assert bed.pod.state() == before


@pytest.mark.parametrize("by_software", [True, False])
@pytest.mark.parametrize("spoof_protection", [True, False])
def test_an_honest_guest_leaves_its_checksums_to_the_host(
    bed: PodNetwork, by_software: bool, spoof_protection: bool
) -> None:
    if by_software:
        bed.pod.call(partial(leave_checksums_to_software, "eth0"))
    datagram = struct.pack(">HHHH", 7, 9, 8, 0x1234)
    segment = struct.pack(">HHIIBBHHH", 7, 9, 1, 0, 5 << 4, 0x10, 1, 0x1234, 0)
    sent = [
        unfinished(ethernet(0x0800, ipv4(OWN, 17, datagram)), 34, 6),
        unfinished(ethernet(0x86DD, ipv6(OWN6, 17, datagram)), 54, 6),
        unfinished(ethernet(0x86DD, ipv6(OWN6, *behind(2, 6, segment))), 70, 16),
        unfinished(ethernet(0x0800, ipv4(OWN, 6, segment + b"x" * 2000)), 34, 16, segment=1000),
    ]
    arrived = arriving(bed, sent, spoof_protection=spoof_protection)
    finished = {frame for frame in arrived if b"\x12\x34" not in frame}
    pieces = 2 if by_software else 1
    assert len(arrived) == 3 + pieces
    assert len(finished) == (len(arrived) if by_software else 0)
    assert sum(frame.count(b"x") for frame in arrived) >= 2000
