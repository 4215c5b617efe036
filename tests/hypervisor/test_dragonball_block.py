"""The block device, a real file behind it: what a driver may ask for, and what it may not."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.dragonball.virtio.block import Block, Medium, parse_request
from kata_hypervisor.dragonball.virtio.device import DeviceError
from kata_hypervisor.dragonball.virtio.queue import Chain, SplitQueue, gather
from virtqueue_driver import VirtqueueDriver

CONTENT = bytes(range(256)) * 8  # four sectors
IN, OUT, FLUSH, GET_ID, DISCARD = 0, 1, 4, 8, 11
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2

Make = Callable[..., Block]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a disk of four sectors and a bit."""
    path = tmp_path / "disk"
    path.write_bytes(CONTENT + b"rest")
    disks = []

    def disk(read_only: bool = False, size: int = len(CONTENT) + 4) -> Block:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        disks.append(Block(Medium(descriptor, size, read_only=read_only, identity=b"serial")))
        return disks[-1]

    yield disk
    for one in disks:
        one.close()


def header(kind: int, sector: int = 0) -> bytes:
    """struct virtio_blk_outhdr"""
    return struct.pack("<IIQ", kind, 0, sector)


def ask(disk: Block, readable: list[bytes], writable: list[int]) -> tuple[int, bytes, int]:
    """Make one request; return its status, the data that was written, and how long the device says it is."""
    driver = VirtqueueDriver()
    addresses = driver.offer(readable, writable)[len(readable) :]
    queue = SplitQueue(driver.memory, driver.setup, False)
    chain = queue.pop()
    assert chain is not None
    length = disk.handle(0, chain)
    written = b"".join(
        driver.memory.read(address, size) for address, size in zip(addresses, writable, strict=True)
    )
    return written[-1], written[:-1], length


def test_sectors_are_read_into_several_buffers(make: Make) -> None:
    assert ask(make(), [header(IN, 1)], [512, 300, 213]) == (OK, CONTENT[512:1536][: 512 + 300 + 212], 1025)


def test_what_is_written_is_read_again(make: Make) -> None:
    disk = make()
    assert ask(disk, [header(OUT, 3), b"a" * 100, b"b" * 412], [1]) == (OK, b"", 1)
    assert ask(disk, [header(FLUSH)], [1]) == (OK, b"", 1)
    assert ask(disk, [header(IN, 3)], [512, 1]) == (OK, b"a" * 100 + b"b" * 412, 513)


def test_a_header_in_pieces(make: Make) -> None:
    whole = header(IN, 2)
    assert ask(make(), [whole[:5], whole[5:]], [513])[:2] == (OK, CONTENT[1024:1536])


def test_the_serial_number(make: Make) -> None:
    assert ask(make(), [header(GET_ID)], [20, 1]) == (OK, b"serial".ljust(20, b"\0"), 21)


@pytest.mark.parametrize(
    ("sector", "size"), [(4, 512), (3, 1024), (2**63, 512), (2**64 - 1, 512), (0, 511), (0, 4 * 512 + 4)]
)
def test_what_is_beyond_the_end_or_half_a_sector_is_an_error(make: Make, sector: int, size: int) -> None:
    assert ask(make(), [header(IN, sector)], [size, 1])[::2] == (IO_ERROR, 1)
    assert ask(make(), [header(OUT, sector), b"x" * size], [1])[::2] == (IO_ERROR, 1)
    assert ask(make(), [header(IN)], [512, 512, 512, 512, 1])[1] == CONTENT


def test_a_file_that_became_shorter_is_an_error(make: Make) -> None:
    assert ask(make(size=1 << 20), [header(IN, 8)], [512, 1])[::2] == (IO_ERROR, 1)


def test_a_read_only_disk_is_not_written(make: Make) -> None:
    disk = make(read_only=True)
    assert ask(disk, [header(OUT), b"x" * 512], [1])[0] == IO_ERROR
    assert ask(disk, [header(FLUSH)], [1])[0] == UNSUPPORTED
    assert ask(disk, [header(IN)], [512, 1])[:2] == (OK, CONTENT[:512])
    assert disk.features & 1 << 5
    assert not make().features & 1 << 5


def test_an_unknown_request_is_unsupported(make: Make) -> None:
    assert ask(make(), [header(DISCARD), b"x" * 16], [1]) == (UNSUPPORTED, b"", 1)


def test_the_capacity_is_whole_sectors(make: Make) -> None:
    assert int.from_bytes(make().configuration[:8], "little") == 4


@pytest.mark.parametrize(("readable", "writable"), [([b"short"], [1]), ([header(IN)], [])])
def test_a_chain_without_header_or_status_needs_a_reset(
    make: Make, readable: list[bytes], writable: list[int]
) -> None:
    with pytest.raises(DeviceError, match="no whole header, or no room"):
        ask(make(), readable, writable or [])


buffers = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@given(buffers, buffers)
def test_whatever_a_chain_looks_like(readable: list[bytes], writable: list[bytes]) -> None:
    chain = Chain(0, *([memoryview(bytearray(part)) for part in parts] for parts in (readable, writable)))
    content = b"".join(readable)
    try:
        request = parse_request(chain)
    except DeviceError:
        assert len(content) < 16 or not writable
        return
    assert (request.kind, request.sector) == struct.unpack("<I4xQ", content[:16])
    expected = content[16:] if request.kind == OUT else b"".join(writable)[:-1]
    assert gather(request.data) == expected
    assert request.size == len(expected)
    assert len(request.status) >= 1


def test_a_drive_without_a_disk_takes_one_and_gives_it_back(make: Make, tmp_path: Path) -> None:
    drive = Block()
    capacity = struct.Struct("<Q").unpack_from
    assert capacity(drive.configuration) == (0,)
    assert ask(drive, [header(IN)], [512, 1]) == (IO_ERROR, bytes(512), 1)
    path = tmp_path / "later"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    drive.insert(Medium(descriptor, len(CONTENT), read_only=True, identity=b"later"))
    assert capacity(drive.configuration) == (4,)
    assert drive.features & 1 << 5
    assert ask(drive, [header(IN)], [512, 1]) == (OK, CONTENT[:512], 513)
    assert ask(drive, [header(GET_ID)], [20, 1])[1] == b"later".ljust(20, b"\0")
    drive.eject()
    drive.eject()
    assert capacity(drive.configuration) == (0,)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    for kind in (IN, GET_ID):
        assert ask(drive, [header(kind)], [512, 1])[0] == IO_ERROR
    drive.close()


def test_a_disk_is_not_closed_under_a_request(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = make()
    begun, go_on = threading.Event(), threading.Event()
    order: list[str] = []
    read, close = os.preadv, os.close

    def slow(descriptor: int, views: list[memoryview], offset: int) -> int:
        begun.set()
        go_on.wait()
        order.append("read")
        return read(descriptor, views, offset)

    def closed(descriptor: int) -> None:
        order.append("closed")
        close(descriptor)

    answers: list[tuple[int, bytes, int]] = []
    reader = threading.Thread(target=lambda: answers.append(ask(drive, [header(IN)], [512, 1])))
    ejector = threading.Thread(target=drive.eject)
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", slow)
        patched.setattr(os, "close", closed)
        reader.start()
        begun.wait()
        ejector.start()
        while drive._medium is not None:  # what comes from now on finds no disk, and does not wait for it
            time.sleep(0)
        assert ask(drive, [header(IN)], [512, 1])[0] == IO_ERROR
        go_on.set()
        reader.join()
        ejector.join()
    assert order == ["read", "closed"]
    assert answers == [(OK, CONTENT[:512], 513)]
