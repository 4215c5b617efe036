"""Netlink's bytes: round trips, lengths that lie, and the kernel's own messages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.guest import netlink, network
from kata_agent.guest.errors import InvalidRequestError
from kata_agent.guest.netlink import Message

numbers = st.integers(0, 0xFFFF)


@given(st.lists(st.builds(Message, numbers, numbers, st.integers(0, 0xFFFFFFFF), st.binary(max_size=50))))
def test_messages_round_trip(messages: list[Message]) -> None:
    data = b"".join(netlink.encode(message) for message in messages)
    assert list(netlink.decode(data)) == messages


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=50)))
def test_attributes_round_trip(pairs: dict[int, bytes]) -> None:
    assert netlink.parse_attributes(netlink.attributes(pairs.items())) == pairs


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for parse in (lambda: list(netlink.decode(data)), lambda: netlink.parse_attributes(data)):
        try:
            parse()
        except ValueError:
            pass


def test_lengths_that_lie() -> None:
    with pytest.raises(ValueError, match="netlink message of 99 bytes"):
        list(netlink.decode(struct.pack("=IHHII", 99, 1, 0, 0, 0)))
    with pytest.raises(ValueError, match="netlink attribute of 3 bytes"):
        netlink.parse_attributes(struct.pack("=HH", 3, 1))


def test_loopback_is_among_the_kernels_links() -> None:
    (lo,) = (entry for entry in network.list_interfaces().Interfaces if entry.name == "lo")
    assert lo.hwAddr == "00:00:00:00:00:00"
    assert lo.mtu > 0


@pytest.mark.parametrize("text", ["", "02:00", "zz:00:00:00:00:00", "02:00:00:00:00:00:00"])
def test_hardware_addresses(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a hardware address"):
        network._hardware(text)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.0/x", "10.0.0/8", "fd00::/129", "/8"])
def test_networks(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        network._network(text)


def test_network_forms() -> None:
    assert network._network("10.0.0.0/8") == (b"\n\0\0\0", 8)
    assert network._network("10.0.0.1") == (b"\n\0\0\1", 32)
    assert network._network("") == (b"", 0)
