"""The virtqueue's walker against drivers that keep the rules, and against those that do not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.dragonball.virtio.device import DeviceError, QueueSetup
from kata_hypervisor.dragonball.virtio.queue import INDIRECT, NEXT, WRITE, SplitQueue, gather, scatter, split
from virtqueue_driver import AVAILABLE, BUFFERS, MEMORY, TABLE, USED, VirtqueueDriver


@pytest.fixture
def driver() -> VirtqueueDriver:
    """A queue of eight."""
    return VirtqueueDriver()


def walker(driver: VirtqueueDriver, event_index: bool = False) -> SplitQueue:
    """The device's side."""
    return SplitQueue(driver.memory, driver.setup, event_index)


def test_a_chain_comes_in_its_order_and_goes_back_with_its_length(driver: VirtqueueDriver) -> None:
    queue = walker(driver)
    assert queue.pop() is None
    driver.offer([b"one", b"two"], [4, 5])
    chain = queue.pop()
    assert chain is not None
    assert (gather(chain.readable), [len(view) for view in chain.writable]) == (b"onetwo", [4, 5])
    queue.push(chain, scatter(chain.writable, b"abcdefgh"))
    assert driver.used == [(0, 8)]
    assert queue.pop() is None


def test_the_ring_goes_round(driver: VirtqueueDriver) -> None:
    queue = walker(driver)
    for number in range(70_000):
        driver.describe(number % 8, BUFFERS, 1)
        driver.offer_head(number % 8)
        chain = queue.pop()
        assert chain is not None
        assert chain.head == number % 8
        queue.push(chain, 0)
    assert queue.pop() is None


def test_an_indirect_table(driver: VirtqueueDriver) -> None:
    queue = walker(driver)
    table = struct.pack("<QIHHQIHH", BUFFERS + 64, 3, NEXT, 1, BUFFERS + 80, 5, WRITE, 0)
    driver.memory.write(BUFFERS, table)
    driver.memory.write(BUFFERS + 64, b"abc")
    driver.describe(2, BUFFERS, len(table), INDIRECT)
    driver.offer_head(2)
    chain = queue.pop()
    assert chain is not None
    assert (chain.head, gather(chain.readable), chain.room) == (2, b"abc", 5)


def test_interrupts_follow_the_drivers_wish(driver: VirtqueueDriver) -> None:
    queue = walker(driver)
    assert not queue.wants_interrupt()
    for wish in (0, 1):
        driver.memory.write(AVAILABLE, struct.pack("<H", wish))
        driver.offer([b"x"], [])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        assert queue.wants_interrupt() is (wish == 0)


def test_interrupts_with_an_event_index(driver: VirtqueueDriver) -> None:
    queue = walker(driver, event_index=True)
    wanted = []
    for _ in range(4):
        driver.memory.write(AVAILABLE + 4 + 2 * driver.size, struct.pack("<H", 2))
        driver.offer([b"x"], [])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        wanted.append(queue.wants_interrupt())
    assert wanted == [False, False, True, False]


def test_to_rearm_names_the_next_request_and_sees_one_that_came(driver: VirtqueueDriver) -> None:
    queue = walker(driver, event_index=True)
    assert not queue.rearm()
    driver.offer([b"x"], [])
    assert queue.rearm()
    assert queue.pop() is not None
    assert not queue.rearm()
    assert driver.memory.read(USED + 4 + 8 * driver.size, 2) == b"\x01\x00"


HOSTILE = {
    "loop": ([(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0)], "loop"),
    "itself": ([(BUFFERS, 1, NEXT, 0)], "loop"),
    "next out of range": ([(BUFFERS, 1, NEXT, 8)], "descriptor 8 of 8"),
    "no memory": ([(MEMORY, 1, 0, 0)], "no guest memory at 0x40000"),
    "across the end": ([(MEMORY - 1, 2, 0, 0)], "no guest memory"),
    "round the address space": ([(2**64 - 1, 2, 0, 0)], "no guest memory"),
    "empty": ([(BUFFERS, 0, 0, 0)], "empty buffer"),
    "read behind write": ([(BUFFERS, 1, WRITE | NEXT, 1), (BUFFERS, 1, 0, 0)], "read behind"),
    "an indirect table that goes on": ([(BUFFERS, 16, INDIRECT | NEXT, 1)], "where none may be"),
    "an indirect table to write": ([(BUFFERS, 16, INDIRECT | WRITE, 0)], "where none may be"),
    "half an indirect table": ([(BUFFERS, 17, INDIRECT, 0)], "has 17 bytes"),
    "no indirect table": ([(BUFFERS, 0, INDIRECT, 0)], "has 0 bytes"),
    "a large indirect table": ([(BUFFERS, 16 * 9, INDIRECT, 0)], "has 144 bytes"),
    "an indirect table nowhere": ([(MEMORY, 16, INDIRECT, 0)], "no guest memory"),
    "a table in a table": ([(TABLE, 16, INDIRECT, 0)], "where none may be"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_chain_is_refused(driver: VirtqueueDriver, name: str) -> None:
    descriptors, message = HOSTILE[name]
    for number, descriptor in enumerate(descriptors):
        driver.describe(number, *descriptor)
    driver.offer_head(0)
    with pytest.raises(DeviceError, match=message):
        walker(driver).pop()


def test_a_head_out_of_range_and_an_index_that_jumps(driver: VirtqueueDriver) -> None:
    driver.offer_head(8)
    with pytest.raises(DeviceError, match="offers descriptor 8 of 8"):
        walker(driver).pop()
    driver.set_index(9)
    with pytest.raises(DeviceError, match="offers 9 requests in a queue of 8"):
        walker(driver).pop()


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (QueueSetup(1, 8, TABLE + 8, AVAILABLE, USED), "queue 1 has a part at 0x1008"),
        (QueueSetup(1, 8, TABLE, AVAILABLE + 1, USED), "not aligned"),
        (QueueSetup(1, 8, TABLE, AVAILABLE, USED + 2), "not aligned"),
        (QueueSetup(1, 8, MEMORY, AVAILABLE, USED), "queue 1: no guest memory"),
        (QueueSetup(1, 8, TABLE, MEMORY - 2, USED), "no guest memory"),
        (QueueSetup(1, 8, TABLE, AVAILABLE, MEMORY - 8), "no guest memory"),
    ],
)
def test_a_queue_that_is_nowhere(driver: VirtqueueDriver, setup: QueueSetup, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        SplitQueue(driver.memory, setup, False)


small = st.integers(0, 40)
descriptors = st.tuples(
    st.one_of(st.integers(TABLE, TABLE + 0x80), st.integers(BUFFERS, MEMORY + 16), st.integers(0, 2**64 - 1)),
    st.one_of(small, st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 7), st.integers(0, 2**16 - 1)),
    st.one_of(st.integers(0, 9), st.integers(0, 2**16 - 1)),
)


@given(
    st.lists(descriptors, min_size=8, max_size=8),
    st.lists(st.integers(0, 2**16 - 1) | st.integers(0, 9), min_size=1, max_size=8),
    st.integers(0, 2**16 - 1) | st.integers(0, 9),
    st.booleans(),
)
def test_whatever_the_driver_writes(
    table: list[tuple[int, int, int, int]], heads: list[int], index: int, event_index: bool
) -> None:
    driver = VirtqueueDriver()
    for number, fields in enumerate(table):
        driver.describe(number, *fields)
    for head in heads:
        driver.offer_head(head)
    driver.set_index(index)
    queue = walker(driver, event_index)
    try:
        for _ in range(driver.size + 1):
            chain = queue.pop()
            if chain is None:
                break
            views = [*chain.readable, *chain.writable]
            assert 0 < len(views) <= driver.size
            assert all(0 < len(view) <= MEMORY for view in views)
            queue.push(chain, chain.room)
            queue.wants_interrupt()
        else:
            pytest.fail("a queue of eight offered more than eight requests")
        queue.rearm()
    except DeviceError:
        pass


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=5), st.integers(0, 50))
def test_buffers_are_split_and_gathered_without_loss(parts: list[bytes], count: int) -> None:
    views = [memoryview(bytearray(part)) for part in parts]
    first, rest = split(views, count)
    content = b"".join(parts)
    assert (gather(first), gather(rest)) == (content[:count], content[count:])
    assert all(len(view) for view in [*first, *rest])
    assert scatter(views, b"x" * count) == min(count, len(content))
    assert gather(views) == b"x" * min(count, len(content)) + content[count:]
