"""The packets between shim and broker, and the vocabulary that they may use."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.broker import messages, request_schema
from kata_runtime.broker.errors import RequestRefusedError

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


FILTER = {
    "policy": "solo5-hvt-x86_64 [glibc]",
    "advice": "another program",
    "code": "BgAAAAAA/38=",
    "loading": "BgAAAAAA/38=",
    "last": [16, 0x4090AE82],
    "readable": ["/proc/self/fd/4"],
    "writable": [],
}


def to_spawn(**changes: Any) -> dict[str, Any]:
    """A request for a child, with what is given in the place of what is good."""
    usual = {"name": "qemu", "argv": ["/q"], "fds": [], "environment": None, "gate": None, "filter": None}
    return {"op": "spawn", **usual, **changes}


GOOD: list[dict[str, Any]] = [
    {"op": "prepare", "cgroup": None},
    {"op": "prepare", "cgroup": "/default/x"},
    to_spawn(argv=["/bin/true", ""]),
    to_spawn(name="virtiofsd", argv=["/bin/true"], environment={"A": "b=c"}),
    to_spawn(name="solo5-hvt", filter=FILTER),
    to_spawn(name="solo5-hvt", gate=3),
    {"op": "kill", "pid": 100, "signal": 9},
    {
        "op": "mount",
        "target": "/t",
        "mounts": [["overlay", "overlay", ["lowerdir=/a:/b"]], ["bind", "/a", []]],
    },
    {"op": "bind", "source": "/a", "target": "/b", "readonly": True, "recursive": False},
    {"op": "open_fifo", "path": "/f", "mode": "rw"},
    {"op": "close"},
]

BAD: list[dict[str, Any]] = [
    {},
    {"op": None},
    {"op": ["close"]},
    {"op": "exec"},
    {"op": "_do_close"},
    {"op": "close", "extra": 1},
    {"op": "prepare"},
    {"op": "prepare", "cgroup": 7},
    {"op": "prepare", "cgroup": "/a\0b"},
    to_spawn(name="bash", argv=["/bin/bash"]),
    to_spawn(argv=[]),
    to_spawn(argv=["qemu"]),
    to_spawn(argv=["/q", "a\0b"]),
    to_spawn(argv=["/q", 1]),
    to_spawn(argv=["/q"] * 1025),
    to_spawn(fds=[3]),
    to_spawn(environment={"A=B": "x"}),
    to_spawn(environment={"": "x"}),
    to_spawn(environment={"A": 1}),
    to_spawn(gate=2),
    to_spawn(gate="3"),
    to_spawn(filter={}),
    to_spawn(filter={**FILTER, "more": 1}),
    to_spawn(filter={**FILTER, "code": ""}),
    to_spawn(filter={**FILTER, "code": "BgAAAAAA"}),
    to_spawn(filter={**FILTER, "code": "not base64"}),
    to_spawn(filter={**FILTER, "loading": None}),
    to_spawn(filter={**FILTER, "last": [16]}),
    to_spawn(filter={**FILTER, "last": [16, 2**32]}),
    to_spawn(filter={**FILTER, "writable": ["dev/kvm"]}),
    to_spawn(filter={**FILTER, "policy": "two\nlines"}),
    {"op": "kill", "pid": 1, "signal": 9},
    {"op": "kill", "pid": -1, "signal": 9},
    {"op": "kill", "pid": True, "signal": 9},
    {"op": "kill", "pid": 100, "signal": 0},
    {"op": "kill", "pid": 100, "signal": 65},
    {"op": "mount", "target": "/t", "mounts": []},
    {"op": "mount", "target": "/t", "mounts": [["proc", "proc", []]]},
    {"op": "mount", "target": "/t", "mounts": [["fuse.sshfs", "x", []]]},
    {"op": "mount", "target": "/t", "mounts": [["bind", "", []]]},
    {"op": "mount", "target": "/t", "mounts": [["bind", "/a"]]},
    {"op": "mount", "target": "/t", "mounts": [["bind", "/a", "ro"]]},
    {"op": "mount", "target": "t", "mounts": [["bind", "/a", []]]},
    {"op": "bind", "source": "a", "target": "/b", "readonly": True, "recursive": False},
    {"op": "bind", "source": "/a", "target": "/b", "readonly": 1, "recursive": False},
    {"op": "bind", "source": "/a", "target": "/\ud800", "readonly": True, "recursive": False},
    {"op": "open_fifo", "path": "/f", "mode": "x"},
    {"op": "open_fifo", "path": "/" + "x" * 5000, "mode": "r"},
]


@pytest.mark.parametrize("message", GOOD, ids=lambda m: m["op"])
def test_the_vocabulary_takes(message: dict[str, Any]) -> None:
    op, arguments = request_schema.check({"id": 1, **message}, 0)
    assert {"op": op, **arguments} == message


@pytest.mark.parametrize("message", BAD, ids=str)
def test_the_vocabulary_refuses(message: dict[str, Any]) -> None:
    with pytest.raises(RequestRefusedError):
        request_schema.check({"id": 1, **message}, 0)


@pytest.mark.parametrize("numbers", [[0, 0], [256], [-1], ["1"], [1, 2, 3]])
def test_descriptors_are_numbered_once_and_counted(numbers: list[Any]) -> None:
    message = {"id": 1, **to_spawn(fds=numbers)}
    with pytest.raises(RequestRefusedError):
        request_schema.check(message, 2)


def test_descriptors_come_with_spawn_alone() -> None:
    with pytest.raises(RequestRefusedError, match="1 descriptors came, 0 were announced"):
        request_schema.check({"id": 1, "op": "close"}, 1)


@given(
    st.dictionaries(st.text() | st.sampled_from(["op", "path", "fds"]), json_values),
    st.sampled_from([*request_schema.OPERATIONS]),
)
def test_whatever_is_asked_is_checked_or_refused(message: dict[str, Any], op: str) -> None:
    try:
        assert request_schema.check({**message, "op": op}, 0)[0] == op
    except RequestRefusedError:
        pass
