"""The broker holds a VMM's monitor: everything passes before the seal, and afterwards a list of commands."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.api_request import NAME
from kata_runtime.broker import monitor as monitor_module
from kata_runtime.broker.event_loop import EventLoop
from kata_runtime.broker.monitor import CommandFilter, Monitor, NotAllowedError

COMMANDS = {**dict.fromkeys(("cont", "stop", "query-status", "quit")), "put": {"id": NAME, "at": range(8)}}


def test_commands_pass_as_they_were_checked() -> None:
    passed = CommandFilter(COMMANDS).take(
        b' {"execute" : "stop", "id":"x", "arguments": {}}\n{"execute":"cont"}'
    )
    assert passed == b'{"execute": "stop", "id": "x"}{"execute": "cont"}'


def test_arguments_pass_that_fit_what_is_declared() -> None:
    text = b'{"execute": "put", "arguments": {"at": 7, "id": "x"}}'
    assert CommandFilter(COMMANDS).take(text) == text


def test_a_command_may_come_in_pieces() -> None:
    rules = CommandFilter(COMMANDS)
    text = b'{"execute": "quit", "id": 7}'
    assert b"".join(rules.take(bytes([byte])) for byte in text) == text


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ('{"execute": "pmemsave", "arguments": {"val": 0, "size": 9, "filename": "/etc/x"}}', "pmemsave"),
        ('{"execute": "human-monitor-command", "arguments": {"command-line": "stop"}}', "human-monitor"),
        ('{"execute": "chardev-add", "arguments": {}}', "'chardev-add' is not allowed"),
        ('{"execute": "qmp_capabilities"}', "'qmp_capabilities' is not allowed"),
        ('{"exec-oob": "stop"}', "'None' is not allowed"),
        ('{"execute": "stop", "exec-oob": "pmemsave"}', "'stop' has 'exec-oob'"),
        ('{"execute": "quit", "arguments": {"x": 1}}', "has arguments"),
        ('{"execute": "quit", "arguments": []}', "has arguments"),
        ('{"execute": "put"}', "arguments that are not allowed: it has no 'id'"),
        ('{"execute": "put", "arguments": {"id": "a", "at": 8}}', "not allowed: 'at' is '8'"),
        ('{"execute": "put", "arguments": {"id": "/a", "at": 1}}', "not allowed: 'id' is '/a'"),
        ('{"execute": "put", "arguments": {"id": "a", "at": 1, "x": 0}}', "not allowed: it has 'x'"),
        ('{"execute": ["quit"]}', "is not allowed"),
        ('{"execute": "quit", "id": {"a": [1]}}', "an id that is neither"),
        ('{"execute": "stop"}{"execute": "pmemsave"}', "'pmemsave' is not allowed"),
        ('{"execute": "pmemsave", "execute": "stop", "execute": "netdev_add"}', "netdev_add"),
        ("[]", "not a command"),
        ("\xff", "not a command"),
        ("{" + " " * 5000, "not a command"),
        ('{"a":' * 2000, "not a command"),
        ('{"execute": "stop", "id": "' + "x" * 5000, "not a command"),
    ],
)
def test_what_is_no_allowed_command_is_refused(sent: str, why: str) -> None:
    with pytest.raises(NotAllowedError, match=why):
        CommandFilter(COMMANDS).take(sent.encode("latin-1"))


@given(st.binary(max_size=200))
def test_whatever_is_sent_only_commands_pass(data: bytes) -> None:
    try:
        passed = CommandFilter(COMMANDS).take(b'{"execute": "stop"}' + data)
    except NotAllowedError:
        return
    rest = passed.decode()
    while rest:
        message, end = json.JSONDecoder().raw_decode(rest)
        assert message.keys() <= {"execute", "id", "arguments"}
        assert message["execute"] in COMMANDS
        rest = rest[end:]


class Bed:
    """A monitor between two sockets, and a loop that is run by hand."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.vmm, end = socket.socketpair()
        self.sealed = False
        self.refusals: list[str] = []
        rules = CommandFilter(COMMANDS)
        self.monitor = Monitor(end, rules, self.loop, lambda: self.sealed, self.refusals.append)
        self.shim = socket.socket(fileno=self.monitor.hand_over())
        for ours in (self.vmm, self.shim):
            ours.settimeout(60)

    def run(self, times: int = 8) -> None:
        for _ in range(times):
            self.loop.run_once(0)

    def close(self) -> None:
        self.monitor.close()
        self.vmm.close()
        self.shim.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    yield made
    made.close()


def test_before_the_seal_everything_passes(bed: Bed) -> None:
    bed.vmm.send(b'{"QMP": {}}\r\n')
    bed.shim.send(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
    bed.run()
    assert bed.shim.recv(100) == b'{"QMP": {}}\r\n'
    assert bed.vmm.recv(100) == b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
    assert bed.refusals == []


def test_after_the_seal_commands_pass_and_nothing_else(bed: Bed) -> None:
    bed.sealed = True
    bed.shim.send(b'{"execute": "cont", "id": "1"}')
    bed.run()
    assert bed.vmm.recv(100) == b'{"execute": "cont", "id": "1"}'
    bed.vmm.send(b'{"return": {}, "id": "1"}')
    bed.run()
    assert bed.shim.recv(100) == b'{"return": {}, "id": "1"}'
    bed.shim.send(b'{"execute": "pmemsave", "arguments": {"filename": "/etc/cron.d/x"}}')
    bed.run()
    (refusal,) = bed.refusals
    assert "the command 'pmemsave' is not allowed" in refusal
    assert bed.vmm.recv(100) == b""
    assert bed.shim.recv(100) == b""


def test_a_descriptor_of_the_brokers_goes_along_once(bed: Bed) -> None:
    bed.sealed = True
    reader, writer = os.pipe()
    assert not bed.monitor.gives
    bed.monitor.give(writer)
    assert bed.monitor.gives
    for descriptors in (1, 0):
        bed.shim.send(b'{"execute": "cont"}')
        bed.run()
        text, found, *_ = socket.recv_fds(bed.vmm, 100, 2)
        assert (text, len(found)) == (b'{"execute": "cont"}', descriptors)
        for descriptor in found:
            os.close(descriptor)
    assert not bed.monitor.gives
    assert os.read(reader, 1) == b""  # nobody has the other end any more
    os.close(reader)


def test_a_descriptor_of_the_shims_goes_nowhere(bed: Bed) -> None:
    bed.sealed = True
    reader, writer = os.pipe()
    socket.send_fds(bed.shim, [b'{"execute": "cont"}'], [writer])
    os.close(writer)
    bed.run()
    text, found, *_ = socket.recv_fds(bed.vmm, 100, 2)
    assert (text, found) == (b'{"execute": "cont"}', [])
    os.close(reader)


def test_a_flood_waits_for_its_reader(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "PIECE", 1 << 10)
    bed.vmm.setblocking(False)
    sent = 0
    for _ in range(10_000):
        try:
            sent += bed.vmm.send(b"x" * 4096)
        except BlockingIOError:
            break
        bed.run(2)
    else:
        raise AssertionError("the broker read without an end")
    received = 0
    while received < sent:
        bed.run(2)
        received += len(bed.shim.recv(1 << 16))
    assert received == sent


@pytest.mark.parametrize("first", ["vmm", "shim"])
def test_when_one_hangs_up_the_other_sees_it(bed: Bed, first: str) -> None:
    bed.vmm.send(b'{"event": "SHUTDOWN"}')
    bed.run()
    gone, other = (bed.vmm, bed.shim) if first == "vmm" else (bed.shim, bed.vmm)
    gone.close()
    bed.run()
    assert other.recv(100) == (b'{"event": "SHUTDOWN"}' if first == "vmm" else b"")
    assert first == "shim" or other.recv(100) == b""


def test_an_end_that_does_not_read_keeps_nobody_busy(bed: Bed) -> None:
    bed.vmm.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            bed.vmm.send(b"x" * 4096)
            bed.run(1)
    bed.vmm.close()
    bed.run()
    assert not bed.monitor._open
