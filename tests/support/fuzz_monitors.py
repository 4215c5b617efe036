"""What a fuzzer calls with bytes of VMMs: what their monitors say, and the machines that they have saved."""

from __future__ import annotations

import asyncio
import json
import socket
from hashlib import sha256

import fuzz_loop
import fuzz_scratch
from fuzz_devices import AnyDevice
from kata_hypervisor import saved_machine
from kata_hypervisor.cloud_hypervisor import saved
from kata_hypervisor.cloud_hypervisor.events import LIMIT, EventStream
from kata_hypervisor.concurrency import race
from kata_hypervisor.dragonball import layout, saved_state
from kata_hypervisor.dragonball.saved_state import Fields
from kata_hypervisor.dragonball.serial import SerialPort
from kata_hypervisor.dragonball.virtio.device import DeviceError
from kata_hypervisor.dragonball.virtio.mmio import Registers
from kata_hypervisor.errors import SnapshotError
from kata_hypervisor.qemu.qmp import QmpClient, QmpError
from kata_hypervisor.rest import FAULT_LIMIT, RefusedError, RestClient, RestError

TURNS = 30
CONFIG = {"vsock": {"socket": "/new"}, "fs": [{"socket": "/fs"}], "disks": [{"path": "/disk"}]}


def qmp(data: bytes) -> None:
    """The data is what QEMU sends: its greeting, and after each zero byte what follows a command."""
    fuzz_loop.run(_converse(data))


async def _converse(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    monitor = QmpClient(ours)
    peer = asyncio.ensure_future(_send_parts(theirs, data[: fuzz_loop.LONGEST].split(b"\0")))
    try:
        await monitor.connect()
        for command in ("query-status", "stop"):
            await monitor.execute(command)
        fault = await race(monitor.wait_fault, monitor.wait_ended)
        assert fault in (None, "internal-error", "io-error")
    except QmpError as error:
        assert str(error)
    finally:
        reason = monitor.shutdown_reason
        assert reason is None or isinstance(reason, str)
        await monitor.aclose()
        assert monitor.ended
        await peer


async def _send_parts(sock: socket.socket, parts: list[bytes]) -> None:
    """Send the first part, and each other one when something has come, or when nothing seems to come."""
    with sock:
        try:
            for part in parts:
                sock.sendall(part)
                await _wait_briefly(sock)
            sock.shutdown(socket.SHUT_WR)
            while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
                pass
        except ConnectionError:
            return


async def _wait_briefly(sock: socket.socket) -> None:
    """Wait for bytes through some turns of the loop: by no clock, so that an input acts the same."""
    for _ in range(TURNS):
        try:
            sock.recv(1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0)
        else:
            return


def rest(data: bytes) -> None:
    """The first byte chooses: answers to three requests, or a stream of events."""
    if data[:1] < b"\x80":
        fuzz_loop.run(_ask(data[1:]))
        return
    stream = EventStream()
    for at in range(1, min(len(data), 2 * LIMIT), 97):
        for event in stream.feed(data[at : at + 97]):
            assert isinstance(event.source, str)
            assert isinstance(event.name, str)
            assert isinstance(event.properties, dict)


async def _ask(data: bytes) -> None:
    ours, theirs = fuzz_loop.peer_that_sends(data)
    with theirs:
        client = RestClient(ours, "the VMM", base="/api", budget=60)
        try:
            for body in (None, {"a": 1}, None):
                json.dumps(await client.request("PUT", "/machine", body))
        except RefusedError as error:
            assert not 200 <= error.status < 300
            assert len(error.fault) <= FAULT_LIMIT
            assert not error.fault or error.fault.isprintable()
        except RestError as error:
            assert str(error)
        finally:
            await client.aclose()


def saved_machines(data: bytes) -> None:
    """The first byte chooses which of the files that describe a saved machine the data is."""
    which, content = (data[0] if data else 0), data[1:]
    try:
        match which % 4:
            case 0:
                saved_state.decode(content)
            case 1:
                digest = sha256(content).hexdigest().encode()
                head = b"%s %d sha256:%s\n" % (saved_state.MAGIC, saved_state.FORMAT, digest)
                _restore(saved_state.decode(head + content))
            case 2:
                _compare(content)
            case _:
                _describe(content)
    except (SnapshotError, DeviceError):
        return


def _restore(state: Fields) -> None:
    """Give the state to what needs no KVM for it: a device's registers, and the serial port."""
    page = memoryview(bytearray(layout.PAGE))
    device = AnyDevice()
    registers = Registers(device, lambda: None, lambda function: function(), page)
    registers.restore(state.part("device"))
    assert registers.status & ~0xC0 in (0, 1, 3, 0xB, 0xF)
    serial = SerialPort(lambda text: None, lambda: None)
    serial.restore(state.part("serial"))
    assert saved_state.encode(serial.save()) == saved_state.encode(serial.save())


def _compare(content: bytes) -> None:
    """See machine.json beside a machine's state."""
    directory = fuzz_scratch.directory()
    (directory / saved_machine.FILE).write_bytes(content)
    for name, text in saved_machine.describe(directory).items():
        assert isinstance(name, str)
        assert isinstance(text, str)
    saved_machine.Identity({"the VMM": "x 1"}, {"a": [1]}).mismatch(directory)


def _describe(content: bytes) -> None:
    """See Cloud Hypervisor's config.json; the view of it is made in another directory."""
    template = fuzz_scratch.directory()
    view = template / "view"
    view.mkdir(exist_ok=True)
    (template / saved.DESCRIPTION).write_bytes(content)
    with saved.template_view(template, view, CONFIG):
        described = json.loads((view / saved.DESCRIPTION).read_text())
        assert described["vsock"]["socket"] == "/new"
    assert list(view.iterdir()) == []
