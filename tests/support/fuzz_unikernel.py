"""What a fuzzer calls with bytes for the unikernels' monitor: their files, and the calls they make."""

from __future__ import annotations

import functools
import os
import socket
import struct

from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.solo5 import abi
from kata_hypervisor.solo5.devices import Block, Console, Net, Waiter
from kata_hypervisor.solo5.hypercalls import Guest, call
from kata_hypervisor.solo5.memory import Memory
from kata_hypervisor.solo5.unikernel_file import LOWEST_ADDRESS, read_unikernel
from solo5_file import reader

RECORD = struct.Struct("<BB2xI40s")
"""A call: its number, whether it is at the usual address, another address, and the call's structure."""
STRUCTURE = abi.LOWEST + 0x1000
DISK = 2048


def file(data: bytes) -> None:
    """The data is a unikernel's file, ELF headers, notes, manifest and all."""
    try:
        unikernel = read_unikernel(reader(data))
    except UnikernelError:
        return
    end = LOWEST_ADDRESS
    for segment in unikernel.segments:
        assert end <= segment.address
        assert segment.file_size <= segment.memory_size
        assert not (segment.writable and segment.executable)
        end = segment.end
    assert end <= 1 << 32
    assert any(one.executable and one.address <= unikernel.entry < one.end for one in unikernel.segments)
    assert len({device.name for device in unikernel.devices}) == len(unikernel.devices)


class _Impatient(Waiter):
    """Waits for nothing."""

    def wait_inputs(self, nanoseconds: int) -> list[int]:
        """See Waiter."""
        assert nanoseconds >= 0
        return [1]

    def wait_output(self) -> None:
        """See Waiter."""


@functools.cache
def _guest() -> tuple[Guest, int]:
    """A guest with a disk and a network device, and the descriptor of the network's other end."""
    waiter = _Impatient(os.eventfd(0), lambda: None)
    disk = os.memfd_create("disk")
    os.truncate(disk, DISK)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (ours, theirs):
        end.setblocking(False)
    console = Console(os.open(os.devnull, os.O_WRONLY), waiter, lambda data: None)
    devices: dict[int, Block | Net] = {1: Block(disk, DISK), 2: Net(theirs.detach())}
    return Guest(Memory(abi.LARGE_PAGE), console, waiter, devices), ours.detach()


def hypercalls(data: bytes) -> None:
    """The data is a list of calls; a frame waits before each."""
    guest, wire = _guest()
    for at in range(0, len(data) - RECORD.size + 1, RECORD.size):
        number, usual, address, structure = RECORD.unpack_from(data, at)
        guest.memory.view(STRUCTURE, len(structure))[:] = structure
        try:
            os.write(wire, b"frame")
        except BlockingIOError:
            pass
        end = call(guest, abi.CALLS + number, address if usual & 1 else STRUCTURE)
        if end is not None:
            assert end.status is None or 0 <= end.status <= 255
            break
    while True:
        try:
            os.read(wire, 1 << 17)
        except BlockingIOError:
            return
