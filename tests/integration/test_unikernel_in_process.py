"""Unikernels on this host's KVM, in this process: good ones, and ones that do everything wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kata_configuration.models.dragonball import Dragonball
from kata_hypervisor.contract import BlockFile, NetTap, UnikernelSpec, VmExit
from kata_hypervisor.dragonball.unikernel import InProcessUnikernel
from kata_hypervisor.errors import HypervisorError, LaunchError, UnikernelError
from kata_hypervisor.host import ExitStatus
from local_host import LocalHost
from tables import make_table
from unikernel import HELLO, build_unikernel

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm"),
]

TABLE = make_table(Dragonball, kernel=Path("/nonexistent"))


@dataclass
class Bench:
    """Makes unikernels; what they print comes out of `output`."""

    spec: UnikernelSpec
    output: socket.socket
    theirs: socket.socket

    async def prepared(self, line: str, **changes: object) -> InProcessUnikernel:
        """A unikernel that has not run yet."""
        monitor = InProcessUnikernel(TABLE, LocalHost())
        await monitor.prepare(replace(self.spec, command_line=line, **changes))  # type: ignore[arg-type]
        return monitor

    async def run(self, line: str, **changes: object) -> VmExit:
        """Run a unikernel to its end."""
        monitor = await self.prepared(line, **changes)
        await monitor.run()
        return await monitor.wait()

    def printed(self) -> bytes:
        """What was printed so far."""
        self.output.setblocking(False)
        try:
            return self.output.recv(1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guests")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No descriptor and no thread more than before."""
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture
async def bench(guests: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    file = os.open(build_unikernel(guests), os.O_RDONLY)
    output, theirs = socket.socketpair()
    theirs.setblocking(False)
    yield Bench(UnikernelSpec("one", tmp_path, 32, "commands", file, theirs.fileno()), output, theirs)
    os.close(file)
    output.close()
    theirs.close()


@pytest.fixture
def with_block(bench: Bench, guests: Path, tmp_path: Path) -> Iterator[Bench]:
    file = os.open(build_unikernel(guests, "BLOCK"), os.O_RDONLY)
    disk = tmp_path / "disk"
    disk.write_bytes(b"first block\0".ljust(512, b".") + bytes(512 * 3))
    descriptor = os.open(disk, os.O_RDWR)
    yield replace(bench, spec=replace(bench.spec, file=file, block=BlockFile(descriptor)))
    os.close(file)
    os.close(descriptor)


@pytest.fixture
def with_net(bench: Bench, guests: Path) -> Iterator[tuple[Bench, socket.socket]]:
    file = os.open(build_unikernel(guests, "NET"), os.O_RDONLY)
    wire, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    tap = NetTap(theirs.fileno(), b"\x02\0\0\0\0\x01")
    yield replace(bench, spec=replace(bench.spec, file=file, net=tap)), wire
    os.close(file)
    wire.close()
    theirs.close()


async def test_hello(bench: Bench, guests: Path) -> None:
    hello = build_unikernel(guests, source=HELLO)
    with hello.open("rb") as file:
        end = await bench.run("some words", file=file.fileno())
    assert (end.reason, end.status) == ("the unikernel ended with status 0", ExitStatus(code=0))
    assert bench.printed().endswith(b"bytes of code and data\nunikernel: some words\n")


@pytest.mark.parametrize(
    ("line", "status"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("exit 256", 0)]
)
async def test_its_status_is_the_exit_status(bench: Bench, line: str, status: int) -> None:
    assert (await bench.run(line)).status == ExitStatus(code=status)


async def test_what_it_is_told(bench: Bench) -> None:
    end = await bench.run("boot")
    output = bench.printed()
    memory, kernel_end, frequency = (int(output[at : at + 16], 16) for at in (0, 16, 32))
    assert (end.status.code, memory) == (1, 32 << 20)
    assert 0x100000 < kernel_end < 0x200000
    assert frequency > 100_000_000


@pytest.mark.parametrize("line", ["poll 0", "poll 1", "poll 3000000"])
async def test_it_sleeps_not_less_than_it_asks_for(bench: Bench, line: str) -> None:
    assert (await bench.run(line)).status == ExitStatus(code=0)


async def test_output_waits_for_its_reader(bench: Bench) -> None:
    monitor = await bench.prepared("flood 5000")
    await monitor.run()
    ending = asyncio.ensure_future(monitor.wait())
    count, loop = 0, asyncio.get_running_loop()
    bench.output.setblocking(False)
    while count < 80_000:
        count += len(await loop.sock_recv(bench.output, 1 << 16))
    assert (await ending).status == ExitStatus(code=0)
    assert monitor.console_tail.endswith("0123456789abcde")


async def test_the_console_keeps_the_end(bench: Bench) -> None:
    end = await bench.run("echo last output")
    assert end.diagnostics == {"console": "echo last output"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("call 0", "to port 0x500, which is no call of target hvt, version 2"),
        ("call 9", "to port 0x509, which is no call"),
        ("call 4000", "which is no call"),
        ("pointer 4294967295", "named 16 bytes at 0xffffffff, and has memory up to 0x2000000"),
        ("string 1048576", "named 18446744073709551615 bytes at 0x100000"),
        ("port 1282", "accessed port 0x502 in a way that is no call"),
        ("input 1282", "accessed port 0x502 in a way that is no call"),
        ("input 96", "accessed port 0x60 in a way that is no call"),
        ("halt", "halted its processor for good, instead of calling halt"),
        ("trap", "crashed with a triple fault"),
        ("write 0", "crashed with a triple fault"),
        ("write 8192", "crashed with a triple fault"),
        ("write 65536", "crashed with a triple fault"),
        ("write 33554432", "crashed with a triple fault"),
        ("write 1048576", "wrote to address 0x100000, which it must not"),
    ],
)
async def test_what_it_must_not_do_ends_it_alone(bench: Bench, line: str, reason: str) -> None:
    end = await bench.run(line)
    assert end.status == ExitStatus(signal=6)
    assert reason in end.reason


@pytest.mark.parametrize(("line", "word"), [("spin", b"spinning\n"), ("exits", b"calling\n")])
async def test_one_that_never_ends_is_stopped(bench: Bench, line: str, word: bytes) -> None:
    monitor = await bench.prepared(line)
    await monitor.run()
    bench.output.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(bench.output, 100) == word
    await monitor.stop()
    end = await monitor.wait()
    assert (end.requested, end.status.signal) == (True, 9)


@pytest.mark.parametrize("line", ["poll 3600000000000", "flood 1000000"])
async def test_one_that_waits_is_stopped(bench: Bench, line: str) -> None:
    monitor = await bench.prepared(line)
    await monitor.run()
    await asyncio.sleep(0)
    await monitor.stop()
    assert (await monitor.wait()).requested


async def test_one_that_is_killed_as_a_process(bench: Bench) -> None:
    monitor = await bench.prepared("spin")
    await monitor.run()
    (process,) = monitor.processes
    await process.child.kill()
    assert (await monitor.wait()).reason == "the unikernel was killed"


async def test_a_pause_stops_it(bench: Bench) -> None:
    monitor = await bench.prepared("flood 1000000")
    await monitor.run()
    loop = asyncio.get_running_loop()
    bench.output.setblocking(False)
    await loop.sock_recv(bench.output, 1 << 16)
    await monitor.pause()
    while bench.printed():
        pass
    await asyncio.sleep(0.05)
    assert bench.printed() == b""
    await monitor.resume()
    assert await loop.sock_recv(bench.output, 1 << 16)
    await monitor.stop()
    with pytest.raises(HypervisorError, match="cannot pause the unikernel: it was stopped"):
        await monitor.pause()


async def test_blocks_are_of_the_file(with_block: Bench, tmp_path: Path) -> None:
    assert (await with_block.run("capacity")).status == ExitStatus(code=4)
    assert (await with_block.run("copy")).status == ExitStatus(code=0)
    assert with_block.printed() == b"first block"
    assert (tmp_path / "disk").read_bytes()[512:1024] == b"girst block\0".ljust(512, b".")


@pytest.mark.parametrize(
    ("line", "status"), [("beyond 1537", 2), ("beyond 2048", 2), ("nobody 0", 2), ("nobody 2", 2)]
)
async def test_blocks_that_are_not_there(with_block: Bench, line: str, status: int) -> None:
    assert (await with_block.run(line)).status == ExitStatus(code=status)


async def test_a_block_into_what_is_for_reading(with_block: Bench) -> None:
    assert "which is only for reading" in (await with_block.run("into 1048576")).reason


async def test_frames_come_and_go(with_net: tuple[Bench, socket.socket]) -> None:
    bench, wire = with_net
    monitor = await bench.prepared("frames")
    await monitor.run()
    wire.setblocking(False)
    loop = asyncio.get_running_loop()
    for frame in (b"one frame", b"quit"):
        await loop.sock_sendall(wire, frame)
        assert await loop.sock_recv(wire, 100) == frame
    assert (await monitor.wait()).status == ExitStatus(code=0)


async def test_devices_that_differ_are_refused_before_the_start(bench: Bench, with_block: Bench) -> None:
    block = with_block.spec.block
    with pytest.raises(
        UnikernelError, match="cannot run the unikernel commands: the block device 'block' is not in"
    ):
        await bench.prepared("", block=block)
    with pytest.raises(UnikernelError, match="declares the block device 'storage', which is not supplied"):
        await with_block.prepared("", block=None)


@pytest.mark.parametrize(
    ("defines", "message"),
    [
        (
            ("ABI_TARGET=2",),
            "note ABI1 says target spt, version 2; the in-process monitor supports target hvt",
        ),
        (("ABI_VERSION=3",), "note ABI1 says target hvt, version 3"),
    ],
)
async def test_another_abi_is_refused(
    bench: Bench, guests: Path, defines: tuple[str, ...], message: str
) -> None:
    with build_unikernel(guests, *defines).open("rb") as file, pytest.raises(UnikernelError, match=message):
        await bench.prepared("", file=file.fileno())


async def test_what_is_no_unikernel_is_named(bench: Bench) -> None:
    file = os.open("/bin/true", os.O_RDONLY)
    with pytest.raises(UnikernelError, match="cannot run the unikernel commands: "):
        await bench.prepared("", file=file)
    os.close(file)


@pytest.mark.parametrize(
    ("mib", "message"), [(1, "it needs more than 1 MiB"), (4097, "supports 4096 MiB: lower")]
)
async def test_memory_that_does_not_fit(bench: Bench, mib: int, message: str) -> None:
    with pytest.raises(UnikernelError, match=message):
        await bench.prepared("", memory_mib=mib)


async def test_a_command_line_that_is_too_long(bench: Bench) -> None:
    with pytest.raises(UnikernelError, match="has 8192 bytes; at most 8191 are supported"):
        await bench.prepared("x" * 8192)
    assert (await bench.run("echo " + "x" * 8186)).status == ExitStatus(code=0)


async def test_one_that_never_ran_is_stopped(bench: Bench) -> None:
    monitor = await bench.prepared("exit 0")
    await monitor.stop()
    assert bench.printed() == b""
    with pytest.raises(LaunchError, match="used before"):
        await monitor.prepare(bench.spec)


async def test_a_filter_that_cannot_be_put_on_stops_it(bench: Bench) -> None:
    monitor = await bench.prepared("echo it ran")

    def refuse() -> None:
        raise HypervisorError("no filter today")

    monitor.seal_vcpus(refuse)
    with pytest.raises(HypervisorError, match="no filter today"):
        await monitor.run()
    assert bench.printed() == b""
