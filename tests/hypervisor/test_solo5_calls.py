"""What a unikernel asks for, without a KVM: its memory, its calls, its devices and its waits."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_hypervisor.solo5 import abi, start
from kata_hypervisor.solo5.devices import Block, Console, Net, Waiter
from kata_hypervisor.solo5.hypercalls import CALLS, End, Guest, call
from kata_hypervisor.solo5.memory import GuestFaultError, Memory

SIZE = 4 << 20
AT, DATA, FIXED = 0x200000, 0x201000, 0x180000
STORAGE, SERVICE = 1, 2


@dataclass
class Bed:
    """A guest whose output is a pipe, with a file and a socket behind its devices."""

    guest: Guest
    wake: int
    output: int
    printing: int
    wire: int
    attended: list[str] = field(default_factory=list)

    def call(self, number: int, layout: str, *values: int) -> End | None:
        """Put a structure into memory and make the call."""
        raw = struct.pack(layout, *values)
        self.guest.memory.view(AT, len(raw))[:] = raw
        return call(self.guest, abi.CALLS + number, AT)

    def result(self, layout: str, at: int) -> tuple[int, ...]:
        """What the call has written."""
        return struct.unpack(layout, self.guest.memory.view(AT + at, struct.calcsize(layout)))

    def put(self, data: bytes, address: int = DATA) -> None:
        """Put data into memory."""
        self.guest.memory.view(address, len(data))[:] = data


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    from socket import AF_UNIX, SOCK_DGRAM, socketpair

    disk = tmp_path / "disk"
    disk.write_bytes(b"A" * 512 + b"B" * 512)
    file = os.open(disk, os.O_RDWR)
    ours, theirs = socketpair(AF_UNIX, SOCK_DGRAM)
    theirs.setblocking(False)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    attended: list[str] = []

    def attend() -> None:
        os.eventfd_read(wake)
        attended.append("woken")

    waiter = Waiter(wake, attend)
    waiter.add_input(theirs.fileno(), SERVICE)
    memory = Memory(SIZE, [(FIXED, FIXED + 0x1000)])
    devices: dict[int, Block | Net] = {STORAGE: Block(file, 1024), SERVICE: Net(theirs.fileno())}
    guest = Guest(memory, Console(writer, waiter, lambda data: None), waiter, devices)
    yield Bed(guest, wake, reader, writer, ours.fileno(), attended)
    waiter.close()
    memory.close()
    for one in (file, reader, writer, wake):
        os.close(one)
    ours.close()
    theirs.close()


def test_the_time_is_the_hosts(bed: Bed) -> None:
    assert bed.call(abi.WALLTIME, "<Q", 0) is None
    assert bed.result("<Q", 0)[0] > 1_700_000_000 * 10**9


def test_what_is_printed_comes_out(bed: Bed) -> None:
    bed.put(b"hello")
    assert bed.call(abi.PUTS, "<QQ", DATA, 5) is None
    assert os.read(bed.output, 100) == b"hello"


def test_a_reader_that_left_does_not_end_the_guest(bed: Bed) -> None:
    with open(os.devnull, "rb") as nobody:
        os.dup2(nobody.fileno(), bed.output)
    assert bed.call(abi.PUTS, "<QQ", DATA, 5) is None


@pytest.mark.parametrize(
    ("handle", "offset", "length", "answer"),
    [
        (STORAGE, 0, 512, abi.OK),
        (STORAGE, 512, 512, abi.OK),
        (STORAGE, 0, 1024, abi.OK),
        (STORAGE, 0, 0, abi.OK),
        (STORAGE, 1024, 0, abi.INVALID),
        (STORAGE, 512, 513, abi.INVALID),
        (STORAGE, 2**64 - 1, 2, abi.INVALID),
        (SERVICE, 0, 512, abi.INVALID),
        (0, 0, 512, abi.INVALID),
        (2**64 - 1, 0, 512, abi.INVALID),
    ],
)
@pytest.mark.parametrize("number", [abi.BLOCK_READ, abi.BLOCK_WRITE])
def test_blocks(bed: Bed, number: int, handle: int, offset: int, length: int, answer: int) -> None:
    assert bed.call(number, "<QQQQi", handle, offset, DATA, length, -1) is None
    assert bed.result("<i", 32) == (answer,)


def test_a_block_is_read_and_written(bed: Bed) -> None:
    bed.call(abi.BLOCK_READ, "<QQQQi", STORAGE, 512, DATA, 512, -1)
    assert bytes(bed.guest.memory.view(DATA, 512)) == b"B" * 512
    bed.put(b"C" * 512)
    bed.call(abi.BLOCK_WRITE, "<QQQQi", STORAGE, 0, DATA, 512, -1)
    bed.call(abi.BLOCK_READ, "<QQQQi", STORAGE, 0, DATA + 512, 512, -1)
    assert bytes(bed.guest.memory.view(DATA + 512, 512)) == b"C" * 512


def test_a_disk_for_reading_is_not_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    with disk.open("r+b") as file:
        block = Block(file.fileno(), 512, read_only=True)
        assert block.write(0, memoryview(b"x" * 512)) == abi.UNSPECIFIED
        assert block.read(0, memoryview(bytearray(512))) == abi.OK
    assert disk.read_bytes() == bytes(512)


def test_a_disk_that_shrinks_ends_the_guest(bed: Bed, tmp_path: Path) -> None:
    os.truncate(tmp_path / "disk", 100)
    end = bed.call(abi.BLOCK_READ, "<QQQQi", STORAGE, 512, DATA, 512, -1)
    assert end == End("lost its block device at byte 512: the file has become shorter (call 5)")


def test_frames(bed: Bed) -> None:
    assert bed.call(abi.NET_READ, "<QQQi", SERVICE, DATA, 1500, -1) is None
    assert bed.result("<i", 24) == (abi.AGAIN,)
    os.write(bed.wire, b"frame")
    bed.call(abi.NET_READ, "<QQQi", SERVICE, DATA, 1500, -1)
    assert bed.result("<Qi", 16) == (5, abi.OK)
    bed.call(abi.NET_WRITE, "<QQQi", SERVICE, DATA, 5, -1)
    assert (bed.result("<i", 24), os.read(bed.wire, 100)) == ((abi.OK,), b"frame")
    bed.call(abi.NET_WRITE, "<QQQi", SERVICE, DATA, 1 << 20, -1)
    assert bed.result("<i", 24) == (abi.INVALID,)
    bed.call(abi.NET_WRITE, "<QQQi", STORAGE, DATA, 5, -1)
    assert bed.result("<i", 24) == (abi.INVALID,)


def test_a_wait_ends_with_a_frame_or_in_time(bed: Bed) -> None:
    assert bed.call(abi.POLL, "<QQi", 1000, 7, 7) is None
    assert bed.result("<Qi", 8) == (0, 0)
    os.write(bed.wire, b"frame")
    bed.call(abi.POLL, "<QQi", 2**64 - 1, 7, 7)
    assert bed.result("<Qi", 8) == (1 << SERVICE, 1)


def test_a_wait_attends_to_the_host(bed: Bed) -> None:
    os.eventfd_write(bed.wake, 1)
    bed.call(abi.POLL, "<QQi", 1000, 7, 7)
    assert bed.attended == ["woken"]


def test_a_halt_has_a_status(bed: Bed) -> None:
    assert bed.call(abi.HALT, "<Qi", 0, 3) == End("ended with status 3", 3)
    assert bed.call(abi.HALT, "<Qi", 2**64 - 1, -1) == End("ended with status -1", 255)


@pytest.mark.parametrize("port", [0x500, 0x509, 0x3F8, 0, 0xFFFF])
def test_a_port_that_is_no_call_ends_the_guest(bed: Bed, port: int) -> None:
    end = call(bed.guest, port, 1)
    assert end is not None
    assert f"wrote 0x1 to port {port:#x}, which is no call of target hvt, version 2" in end.reason


@pytest.mark.parametrize("number", sorted(CALLS))
@pytest.mark.parametrize("address", [SIZE, SIZE - 1, 0xFFFFFFFF])
def test_a_structure_outside_of_memory_ends_the_guest(bed: Bed, number: int, address: int) -> None:
    end = call(bed.guest, abi.CALLS + number, address)
    assert end is not None
    assert "and has memory up to 0x400000" in end.reason


@pytest.mark.parametrize("address", [0, 0x2000, 0x10000, 0xFFFFF, FIXED, FIXED - 1])
def test_what_is_for_reading_is_not_written_to(bed: Bed, address: int) -> None:
    for layout in (abi.BLOCK_READ, abi.NET_READ):
        end = (
            bed.call(layout, "<QQQQi", STORAGE, 0, address, 512, -1)
            if layout == abi.BLOCK_READ
            else bed.call(layout, "<QQQi", SERVICE, address, 512, -1)
        )
        assert end is not None
        assert "which is only for reading" in end.reason
    assert call(bed.guest, abi.CALLS + abi.WALLTIME, address) is not None


NUMBERS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2, 512, 1024, AT, DATA, FIXED, SIZE, SIZE - 8])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(sorted(set(CALLS) - {abi.POLL})), st.lists(NUMBERS, min_size=5, max_size=5), NUMBERS)
def test_no_call_does_more_than_end_the_guest(bed: Bed, number: int, values: list[int], address: int) -> None:
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), bed.printing)
    tables = bytes(bed.guest.memory.view(0, abi.LOWEST))
    bed.put(struct.pack("<5Q", *values), AT)
    for at in (AT, address & 0xFFFFFFFF):
        end = call(bed.guest, abi.CALLS + number, at)
        assert end is None or isinstance(end, End)
    assert bytes(bed.guest.memory.view(0, abi.LOWEST)) == tables


@given(st.integers(-(2**65), 2**65), st.integers(-(2**65), 2**65))
def test_no_address_is_more_than_refused(address: int, length: int) -> None:
    memory = Memory(abi.LARGE_PAGE)
    try:
        assert len(memory.view(address, length)) == length
        assert 0 <= address <= address + length <= memory.size
    except GuestFaultError:
        assert not 0 <= address <= address + length <= memory.size
    finally:
        memory.close()


def test_page_tables_map_all_memory_once() -> None:
    memory = Memory(2 * abi.LARGE_PAGE)
    start.write_tables(memory)

    def entries(at: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", memory.view(at, 8 * count))

    assert entries(abi.PML4, 2) == (abi.PDPT | 3, 0)
    assert entries(abi.PDPT, 5) == (0x4003, 0x5003, 0x6003, 0x7003, 0)
    assert entries(abi.DIRECTORIES, 3) == (abi.FIRST_TABLE | 3, abi.LARGE_PAGE | 0x83, 0)
    pages = entries(abi.FIRST_TABLE, 512)
    assert set(pages[:16]) == {0}
    assert pages[16:256] == tuple(page << 12 | 1 for page in range(16, 256))
    assert pages[256:] == tuple(page << 12 | 3 for page in range(256, 512))
    memory.close()


def test_boot_information_is_where_the_guest_looks() -> None:
    memory = Memory(abi.LARGE_PAGE)
    start.write_boot_info(memory, 0x104000, 2 * 10**9, b"a b", b"manifest")
    info = struct.unpack("<QQQQQIIQ", memory.view(0x10000, 56))
    assert info[:3] == (abi.LARGE_PAGE, 0x104000, 2 * 10**9)
    assert bytes(memory.view(info[3], 4)) == b"a b\0"
    assert bytes(memory.view(info[4], 8)) == b"manifest"
    assert info[5:] == (0, 0, 0)
    memory.close()
