"""What a unikernel asks for: a table from a call's number to the function that does it.

A function gets the guest and the address of the call's structure, both hostile; it returns None when the
guest goes on. Runs on the processor's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kata_hypervisor.solo5 import abi
from kata_hypervisor.solo5.devices import Block, Console, Device, Net, Waiter
from kata_hypervisor.solo5.memory import GuestFaultError, Memory


@dataclass(frozen=True, slots=True)
class Guest:
    """What calls work on. devices: by their handles in the manifest."""

    memory: Memory
    console: Console
    waiter: Waiter
    devices: Mapping[int, Device]


class End(NamedTuple):
    """How the guest ended. reason: continues "the unikernel". status: its exit status, where it gave one."""

    reason: str
    status: int | None = None


Call = Callable[[Guest, int], End | None]


def _walltime(guest: Guest, address: int) -> None:
    view = guest.memory.writable(address, abi.WALLTIME_OUT.size)
    abi.WALLTIME_OUT.pack_into(view, 0, time.time_ns())


def _puts(guest: Guest, address: int) -> None:
    data, length = abi.PUTS_IN.unpack(guest.memory.view(address, abi.PUTS_IN.size))
    guest.console.print(guest.memory.view(data, length))


def _poll(guest: Guest, address: int) -> None:
    result = guest.memory.writable(address + abi.POLL_OUT_AT, abi.POLL_OUT.size)
    (nanoseconds,) = abi.POLL_IN.unpack(guest.memory.view(address, abi.POLL_IN.size))
    ready = guest.waiter.wait_inputs(nanoseconds)
    abi.POLL_OUT.pack_into(result, 0, sum(1 << handle for handle in set(ready)), len(ready))


def _block(guest: Guest, address: int, *, write: bool) -> None:
    handle, offset, data, length = abi.BLOCK_IN.unpack(guest.memory.view(address, abi.BLOCK_IN.size))
    result = guest.memory.writable(address + abi.BLOCK_OUT_AT, abi.BLOCK_OUT.size)
    device = guest.devices.get(handle)
    if not isinstance(device, Block):
        answer = abi.INVALID
    elif write:
        answer = device.write(offset, guest.memory.view(data, length))
    else:
        answer = device.read(offset, guest.memory.writable(data, length))
    abi.BLOCK_OUT.pack_into(result, 0, answer)


def _block_read(guest: Guest, address: int) -> None:
    _block(guest, address, write=False)


def _block_write(guest: Guest, address: int) -> None:
    _block(guest, address, write=True)


def _net(guest: Guest, address: int, *, write: bool) -> None:
    handle, data, length = abi.NET_IN.unpack(guest.memory.view(address, abi.NET_IN.size))
    result = guest.memory.writable(address + abi.NET_OUT_AT, abi.NET_OUT.size)
    device = guest.devices.get(handle)
    if not isinstance(device, Net):
        answer = abi.INVALID
    elif write:
        answer = device.write(guest.memory.view(data, length))
    else:
        length, answer = device.read(guest.memory.writable(data, length))
    abi.NET_OUT.pack_into(result, 0, length, answer)


def _net_read(guest: Guest, address: int) -> None:
    _net(guest, address, write=False)


def _net_write(guest: Guest, address: int) -> None:
    _net(guest, address, write=True)


def _halt(guest: Guest, address: int) -> End:
    _, status = abi.HALT_IN.unpack(guest.memory.view(address, abi.HALT_IN.size))
    return End(f"ended with status {status}", status & 0xFF)


CALLS: Mapping[int, Call] = {
    abi.WALLTIME: _walltime,
    abi.PUTS: _puts,
    abi.POLL: _poll,
    abi.BLOCK_WRITE: _block_write,
    abi.BLOCK_READ: _block_read,
    abi.NET_WRITE: _net_write,
    abi.NET_READ: _net_read,
    abi.HALT: _halt,
}


def call(guest: Guest, port: int, value: int) -> End | None:
    """Do what a write to a port asks for; one that asks for nothing known ends the guest."""
    function = CALLS.get(port - abi.CALLS)
    if function is None:
        return End(
            f"wrote {value:#x} to port {port:#x}, which is no call of target hvt, version {abi.VERSION}"
        )
    try:
        return function(guest, value)
    except GuestFaultError as error:
        return End(f"{error} (call {port - abi.CALLS})")
