"""Disks and network devices of a stock kernel in the in-process machine, from the start and later.

`make test-rig` runs this where a KVM runs unmodified guests.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kata_hypervisor.contract import Disk, Tap
from kata_hypervisor.dragonball.virtio.network import set_up_tap
from kata_hypervisor.errors import HypervisorError
from kata_hypervisor.seccomp import seal
from scripted_guest import ScriptedGuest
from sealed_process import run_sealed

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(300)]

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x2, 0x1000, 0x4000
SIOCSIFADDR, SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8916, 0x8914, 0x1, 0x40
TAP, MAC, PORT = "kata-test", "02:00:00:00:00:07", 7000
SIZE = 1 << 20


def disk(directory: Path, name: str, *, read_only: bool = False) -> Disk:
    """A disk of a MiB that begins with its name."""
    path = directory / name
    path.write_bytes(name.encode().ljust(SIZE, b"\0"))
    return Disk(name, path, read_only=read_only)


@pytest.fixture
def tap() -> Iterator[int]:
    """A tap with the address 10.9.0.1/8."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", TAP.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        address = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton("10.9.0.1"))
        fcntl.ioctl(any_socket, SIOCSIFADDR, struct.pack("16s16s", TAP.encode(), address))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", TAP.encode(), IFF_UP | IFF_RUNNING))
    yield descriptor
    os.close(descriptor)


CONTENT = bytes(range(256)) * 2000
FETCH = f"""
ip address add 10.9.0.2/8 dev eth0
ip link set eth0 up
echo "sum $(echo hello | nc 10.9.0.1 {PORT} | sha256sum)"
"""


class Server:
    """Answers on the tap with CONTENT to whoever sends a line. received: what was sent."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "10.9.0.1", PORT)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received.append(await reader.readline())
        writer.write(CONTENT)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()


DISKS = """
echo "first: $(head -c 6 /dev/vda) $(cat /sys/block/vda/serial) $(cat /sys/block/vda/ro)"
echo "second: $(head -c 6 /dev/vdb) $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/ro)"
echo written | dd of=/dev/vda bs=512 seek=7 conv=fsync 2>/dev/null && echo "vda takes it"
echo written | dd of=/dev/vdb bs=512 seek=7 conv=fsync 2>/dev/null || echo "vdb refuses it"
"""


async def test_further_disks_are_read_and_written_or_refuse_it(tmp_path: Path) -> None:
    disks = (disk(tmp_path, "disk_a"), disk(tmp_path, "disk_b", read_only=True))
    guest = ScriptedGuest(tmp_path, DISKS)
    guest.spec = replace(guest.spec, disks=disks)
    async with guest:
        await guest.says("first: disk_a disk_a 0")
        await guest.says("second: disk_b disk_b 1")
        await guest.says("vda takes it")
        await guest.says("vdb refuses it")
    assert disks[0].path.read_bytes()[7 * 512 :].startswith(b"written\n")
    assert disks[1].path.read_bytes() == b"disk_b".ljust(SIZE, b"\0")


async def test_packets_go_through_a_tap_both_ways(tmp_path: Path, tap: int) -> None:
    guest = ScriptedGuest(tmp_path, FETCH)
    guest.spec = replace(guest.spec, taps=(Tap("net0", TAP, MAC, fds=(tap,)),))
    async with Server() as server, guest:
        await guest.says(f"sum {hashlib.sha256(CONTENT).hexdigest()}")
    assert server.received == [b"hello\n"]


PLUGGED = """
echo "there are $(ls /sys/block | grep -c vd) disks"
plugged vda
echo "first: $(head -c 6 /dev/vda) $(cat /sys/block/vda/serial) $(cat /sys/block/vda/ro)"
plugged vdb
echo "second: $(head -c 6 /dev/vdb) $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/ro)"
echo written | dd of=/dev/vdb bs=512 seek=7 conv=fsync 2>/dev/null && echo "vdb takes it"
emptied vda
echo "vda has $(size vda) sectors"
plugged vda
echo "third: $(head -c 6 /dev/vda) $(cat /sys/block/vda/serial) $(cat /sys/block/vda/ro)"
"""


async def test_disks_come_and_go_while_the_guest_runs(tmp_path: Path) -> None:
    first, second = disk(tmp_path, "disk_a", read_only=True), disk(tmp_path, "disk_b")
    third, fourth = disk(tmp_path, "disk_c", read_only=True), disk(tmp_path, "disk_d")
    guest = ScriptedGuest(tmp_path, PLUGGED)
    guest.spec = replace(guest.spec, spare_disks=2)
    async with guest:
        machine = guest.machine
        await guest.says("there are 0 disks")
        await machine.add_disk(first)
        await guest.says("first: disk_a disk_a 1")
        await machine.add_disk(second)
        await guest.says("second: disk_b disk_b 0")
        await guest.says("vdb takes it")
        with pytest.raises(HypervisorError, match="disk_c: none of the 2 slots"):
            await machine.add_disk(third)
        await machine.remove_disk("disk_a")
        with pytest.raises(HypervisorError, match="disk_a: it was not plugged in"):
            await machine.remove_disk("disk_a")
        await guest.says("vda has 0 sectors")
        with pytest.raises(HypervisorError, match="disk_d: none of the 2 slots"):  # it is a read-only drive
            await machine.add_disk(fourth)
        await machine.add_disk(third)
        await guest.says("third: disk_c disk_c 1")
    assert second.path.read_bytes()[7 * 512 :].startswith(b"written\n")


PLUGGED_TAP = f"""
echo "there are $(ls /sys/class/net | grep -c eth) interfaces"
until [ -e /sys/class/net/eth0 ]; do usleep 20000; done
echo "address $(cat /sys/class/net/eth0/address)"
{FETCH}
until [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]; do usleep 20000; done
echo "the link is down"
"""


async def test_a_network_device_comes_and_goes(tmp_path: Path, tap: int) -> None:
    set_up_tap(tap)
    guest = ScriptedGuest(tmp_path, PLUGGED_TAP)
    guest.spec = replace(guest.spec, spare_taps=1)
    async with guest:
        await guest.says("there are 0 interfaces")
        async with Server() as server:
            await guest.machine.add_tap(Tap("net0", TAP, MAC, fds=(os.dup(tap),)))
            await guest.says(f"address {MAC}")
            await guest.says(f"sum {hashlib.sha256(CONTENT).hexdigest()}")
        assert server.received == [b"hello\n"]
        await guest.machine.remove_tap("net0")
        await guest.says("the link is down")


async def test_a_guest_that_does_not_look_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = ScriptedGuest(tmp_path, "echo up")
    monkeypatch.setattr(guest.host, "patience", 1.0)
    guest.spec = replace(guest.spec, spare_disks=1)
    one = disk(tmp_path, "disk_a", read_only=True)
    async with guest:
        await guest.says("up")
        await guest.machine.pause()
        with pytest.raises(HypervisorError, match=r"disk_a: the guest did not respond within 1 s"):
            await guest.machine.add_disk(one)
        await guest.machine.resume()
        monkeypatch.setattr(guest.host, "patience", 60.0)
        await guest.machine.add_disk(one)


SEALED = """
closed = sys.meta_path.pop(0)
import fcntl, struct
from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.host_files import open_vhost_net
from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.dragonball.virtio.block import Block, Medium
from kata_hypervisor.dragonball.virtio.device import VERSION_1, QueueSetup, DeviceContext
from kata_hypervisor.dragonball.virtio.mmio import Registers
from kata_hypervisor.dragonball.virtio.network import NO_TAP, Network, set_up_tap
sys.meta_path.insert(0, closed)

memory, control = GuestMemory.allocate(2 << 20), Control("devices")
events = [os.eventfd(0) for _ in range(4)]
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", b"kata-sealed", FLAGS))
set_up_tap(tap)
disk = os.memfd_create("disk")
os.write(disk, bytes(512))

def connect(device):
    registers = Registers(device, lambda: os.eventfd_write(events[3], 1), control.call)
    device.connect(DeviceContext(memory, events[:2], events[2], registers))
    return registers

nic, drive = Network(NO_TAP, open_vhost_net()), Block()
of_nic, of_drive = connect(nic), connect(drive)
seal_now()
# What a sealed runtime does with descriptors that the broker has sent.
nic.insert(tap, bytes(6))
nic.activate(VERSION_1, [QueueSetup(i, 8, 0x1000 + 0x4000 * i, 0x2000, 0x3000) for i in (0, 1)])
control.call(nic.eject)
of_nic.configuration_changed()
nic.reset()
drive.insert(Medium(disk, 512, read_only=True))
of_drive.configuration_changed()
control.call(drive.eject)
print("plugged", nic.configuration[6], drive.configuration[:8].hex())
sys.stdout.flush()
drive.close()
control.close()
"""


def test_a_sealed_process_needs_no_call_more() -> None:
    names = f"TUNSETIFF, FLAGS = {TUNSETIFF}, {IFF_TAP | IFF_NO_PI | IFF_VNET_HDR}\n"
    result = run_sealed(names + SEALED, seal.SHIM_FEATURES | {"vcpu", "block", "vhost-net"})
    assert (result.blocked, result.stdout) == ([], "plugged 0 0000000000000000\n"), result
