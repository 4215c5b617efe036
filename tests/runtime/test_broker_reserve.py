"""A process without room for descriptors reads its messages still, and a broker keeps some for its end."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from kata_runtime.broker import messages
from kata_runtime.broker.reserve import DESCRIPTORS, Reserve


@pytest.fixture
def no_room() -> Iterator[None]:
    """This process may open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/", os.O_PATH)
    os.close(free)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, hard))
    try:
        while True:
            held.append(os.open("/", os.O_PATH))
    except OSError:
        yield
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def sent(ends: tuple[socket.socket, socket.socket]) -> socket.socket:
    """A socket to which a message with two descriptors has come."""
    messages.send(ends[0], messages.encode({"id": 7}), [0, 0])
    return ends[1]


def test_a_message_is_read_that_there_are_no_descriptors_for(sent: socket.socket, no_room: None) -> None:
    with pytest.raises(messages.DescriptorsLostError, match="Too many open files") as caught:
        messages.receive(sent)
    assert caught.value.message == {"id": 7}
    assert caught.value.errno == errno.EMFILE


def test_too_many_descriptors_are_no_message(ends: tuple[socket.socket, socket.socket]) -> None:
    messages.send(ends[0], messages.encode({"id": 7}), [0] * (messages.MAX_DESCRIPTORS + 1))
    with pytest.raises(messages.MessageError, match="carries too many descriptors") as caught:
        messages.receive(ends[1])
    assert not isinstance(caught.value, messages.DescriptorsLostError)


def test_what_is_kept_back_is_given_once() -> None:
    before = len(os.listdir("/proc/self/fd"))
    reserve = Reserve(0)
    assert len(os.listdir("/proc/self/fd")) == before + DESCRIPTORS
    for _ in range(2):
        reserve.release()
        assert len(os.listdir("/proc/self/fd")) == before
