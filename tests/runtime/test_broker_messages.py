"""The packets between shim and broker."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.broker import messages

Pair = tuple[socket.socket, socket.socket]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_what_is_encoded_is_decoded(message: dict[str, Any]) -> None:
    assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(packet: bytes) -> None:
    try:
        assert isinstance(messages.decode(packet), dict)
    except messages.MessageError:
        pass


@pytest.mark.parametrize("packet", [b"[]", b"1", b"", b"{", b"[" * 60000, b"\xff", b'{"a":' * 10000])
def test_a_packet_that_is_no_object_is_refused(packet: bytes) -> None:
    with pytest.raises(messages.MessageError):
        messages.decode(packet)


def test_paths_that_are_not_utf8_survive() -> None:
    path = os.fsdecode(b"/tmp/\xff\xfe")
    assert os.fsencode(messages.decode(messages.encode({"path": path}))["path"]) == b"/tmp/\xff\xfe"


def test_descriptors_travel_with_their_message(pair: Pair) -> None:
    read, write = os.pipe()
    messages.send(pair[0], messages.encode({"id": 1}), [write])
    os.close(write)
    message, fds = messages.receive(pair[1])
    assert message == {"id": 1}
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through")
    messages.close_all(fds)
    assert os.read(read, 100) == b"through"
    os.close(read)


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(messages.MessageError, match="too long"):
        messages.encode({"a": "x" * messages.MAX_BYTES})


def test_a_packet_that_is_too_long_is_refused_with_its_descriptors_closed(pair: Pair) -> None:
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(pair[0], [b" " * (messages.MAX_BYTES + 100)], [0])
    with pytest.raises(messages.MessageError):
        messages.receive(pair[1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_descriptors_are_refused_and_closed(pair: Pair) -> None:
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(pair[0], [b"{}"], [0] * (messages.MAX_DESCRIPTORS + 1))
    with pytest.raises(messages.MessageError):
        messages.receive(pair[1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_socket_is_the_end(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(messages.EndOfStream):
        messages.receive(pair[1])
