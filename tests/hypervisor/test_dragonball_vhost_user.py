"""The vhost-user client against a backend that keeps the protocol, and against others."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.dragonball.memory import GuestMemory, regions_of
from kata_hypervisor.dragonball.virtio.device import VERSION_1, DeviceContext, DeviceError, QueueSetup
from kata_hypervisor.dragonball.virtio.filesystem import FileSystem
from kata_hypervisor.dragonball.virtio.vhost_user import (
    PROTOCOL_FEATURES,
    REPLY_ACK,
    Backend,
    Message,
    Request,
    VhostUserError,
    memory_table,
    parse_header,
)
from kata_hypervisor.errors import LaunchError

HEADER = struct.Struct("<III")
REPLY = 0x5
OFFERED = VERSION_1 | 1 << 29 | PROTOCOL_FEATURES


class Silent:
    """Interrupts that nobody receives."""

    def used(self) -> None: ...
    def configuration_changed(self) -> None: ...
    def needs_reset(self) -> None: ...


class FakeBackend:
    """Serves one connection on a thread. requests: what came: number, payload, count of descriptors."""

    def __init__(self, protocol: int = REPLY_ACK, refused: int = 0) -> None:
        self.requests: list[tuple[int, bytes, int]] = []
        self.ours, self._theirs = socket.socketpair()
        self._answers = {1: OFFERED, 15: protocol}
        self._refused = refused
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._theirs as connection:
            while True:
                header, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 8)
                for descriptor in descriptors:
                    os.close(descriptor)
                if not header:
                    return
                kind, flags, size = HEADER.unpack(header)
                payload = connection.recv(size) if size else b""
                self.requests.append((kind, payload, len(descriptors)))
                answer = None
                if kind in self._answers:
                    answer = struct.pack("<Q", self._answers[kind])
                elif kind == Request.GET_VRING_BASE:
                    answer = payload
                elif flags & 1 << 3:
                    answer = struct.pack("<Q", kind == self._refused)
                if answer is not None:
                    connection.sendall(HEADER.pack(kind, REPLY, len(answer)) + answer)

    def close(self) -> None:
        """End the thread."""
        self.ours.close()
        self._thread.join()

    @property
    def kinds(self) -> list[int]:
        """The requests that came, in their order."""
        return [kind for kind, _, _ in self.requests]


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeBackend]]:
    """Makes backends."""
    made: list[FakeBackend] = []

    def make(protocol: int = REPLY_ACK, refused: int = 0) -> FakeBackend:
        made.append(FakeBackend(protocol, refused))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Two MiB that can be passed on."""
    memory = GuestMemory.allocate(2 << 20)
    yield memory
    memory.close()


def context(memory: GuestMemory) -> DeviceContext:
    """Any descriptor will do for what a backend only passes to its kernel."""
    return DeviceContext(memory, (memory.descriptor,) * 2, memory.descriptor, Silent())


SETUPS = [QueueSetup(0, 8, 0x1000, 0x2000, 0x3000), QueueSetup(1, 16, 0x4000, 0x5000, 0x6000)]


def test_a_device_is_negotiated_started_and_stopped(
    fake: Callable[..., FakeBackend], memory: GuestMemory
) -> None:
    backend = fake()
    device = FileSystem(backend.ours, "kataShared", 1024)
    assert device.configuration == b"kataShared".ljust(36, b"\0") + b"\x01\0\0\0"
    device.connect(context(memory))
    assert device.features == VERSION_1 | 1 << 29
    assert backend.kinds == [3, 1, 15, 16, 5]
    regions = struct.pack("<IIQQQQ", 1, 0, 0, memory.size, memory.address, 0)
    assert backend.requests[-1] == (5, regions, 1)
    device.activate(VERSION_1, SETUPS)
    assert backend.kinds[5:] == [2, *([8, 10, 9, 13, 12] * 2), 18, 18]
    address = memory.address
    expected = struct.pack("<IIQQQQ", 1, 0, address + 0x4000, address + 0x6000, address + 0x5000, 0)
    assert backend.requests[13] == (9, expected, 0)
    assert [count for kind, _, count in backend.requests if kind in (12, 13)] == [1] * 4
    device.reset()
    device.reset()
    assert backend.kinds[18:] == [11, 11]
    device.close()


def test_a_backend_that_acknowledges_nothing(fake: Callable[..., FakeBackend], memory: GuestMemory) -> None:
    backend = fake(protocol=0)
    device = FileSystem(backend.ours, "x", 8)
    device.connect(context(memory))
    device.activate(VERSION_1, SETUPS[:1])
    device.reset()
    assert backend.kinds == [3, 1, 15, 16, 5, 2, 8, 10, 9, 13, 12, 18, 11]


def test_a_refusal_is_the_devices_failure(fake: Callable[..., FakeBackend], memory: GuestMemory) -> None:
    device = FileSystem(fake(refused=9).ours, "x", 8)
    device.connect(context(memory))
    with pytest.raises(DeviceError, match="virtiofsd: the backend refuses SET_VRING_ADDR"):
        device.activate(VERSION_1, SETUPS)


def test_a_refusal_at_the_start_is_the_machines(
    fake: Callable[..., FakeBackend], memory: GuestMemory
) -> None:
    device = FileSystem(fake(refused=5).ours, "x", 8)
    with pytest.raises(LaunchError, match="virtiofsd: the backend refuses SET_MEM_TABLE"):
        device.connect(context(memory))


def test_a_queue_outside_of_the_memory(fake: Callable[..., FakeBackend], memory: GuestMemory) -> None:
    device = FileSystem(fake().ours, "x", 8)
    device.connect(context(memory))
    with pytest.raises(DeviceError, match="queue 1: no guest memory"):
        device.activate(VERSION_1, [QueueSetup(1, 8, memory.size, 0, 0)])


def test_a_tag_that_is_too_long() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(LaunchError, match="more than 36 bytes"):
        FileSystem(ours, "x" * 37, 8)


@given(st.binary(max_size=60))
def test_whatever_a_backend_answers(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        backend = Backend(ours)
        try:
            value = backend.ask(Message(Request.GET_FEATURES))
        except VhostUserError:
            pass
        else:
            assert answer[:4] == b"\x01\0\0\0"
            assert value == int.from_bytes(answer[12:20], "little")
        theirs.close()


def test_a_backend_that_has_hung_up() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(VhostUserError, match="cannot send SET_OWNER: Broken pipe"):
        Backend(ours).negotiate()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.pack(2, REPLY, 8), "of kind 2 with flags 0x5 came to GET_FEATURES"),
        (HEADER.pack(1, 1, 8), "of kind 1 with flags 0x1"),
        (HEADER.pack(1, 6, 8), "of kind 1 with flags 0x6"),
        (HEADER.pack(1, REPLY, 0xFFFFFFFF), "has 4294967295 bytes, not 8"),
    ],
)
def test_an_answer_to_something_else(header: bytes, message: str) -> None:
    with pytest.raises(VhostUserError, match=message):
        parse_header(header, Request.GET_FEATURES, 8)


def test_memory_around_the_gap_is_two_regions_of_one_file() -> None:
    memory = GuestMemory(memoryview(b""), 0x7000_0000_0000, 5)
    memory.regions = regions_of(4 << 30)
    message = memory_table(memory)
    assert message.descriptors == (5, 5)
    low, high = struct.unpack_from("<4Q", message.payload, 8), struct.unpack_from("<4Q", message.payload, 40)
    assert low == (0, 3 << 30, 0x7000_0000_0000, 0)
    assert high == (4 << 30, 1 << 30, 0x7000_C000_0000, 3 << 30)
