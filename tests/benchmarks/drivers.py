"""Benchmark: what each driver adds from a machine's description to its guest's first instruction.

Beside it the VMM started by hand: the same command line and the same requests, written by the driver a moment
before, and nothing else; in turn, in one run. The guest is a few bytes that write to the serial port at once,
so that nothing of a kernel's boot hides the difference. What the driver adds is its checks, its proofs, and
the wait of the virtual CPUs for them.

A VMM is measured where it is on PATH or named by KATA_TEST_CLOUD_HYPERVISOR, KATA_TEST_FIRECRACKER,
KATA_TEST_SOLO5_HVT, KATA_TEST_SOLO5_SPT, and where it runs. Budget: SPECIFICATION.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import pytest
from results import record

from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.firecracker import Firecracker
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt
from kata_hypervisor import output_tail, registry, vhost_vsock
from kata_hypervisor.cloud_hypervisor import machine as clh
from kata_hypervisor.contract import Hypervisor, UnikernelSpec, UnikernelVmm, Vmm, VmSpec
from kata_hypervisor.errors import HypervisorError
from kata_hypervisor.kvm.probe import probe_kvm
from kata_hypervisor.qemu import command as qemu
from kata_hypervisor.rest import RestClient
from kata_hypervisor.solo5 import tender
from local_host import LocalChild, LocalHost
from solo5_file import abi_note, unikernel_file
from tiny_guest import HALT_FOREVER, kernel, say
from unikernel import build_unikernel
from unikernel_subjects import TARGETS, spt_code

SIGN = b"!"
LINE = "echo !"
"""The command line of a unikernel, for its sign."""

FACTOR, CONSTANT_MS = 1.10, 20.0
"""The budget: a driver's start takes at most this times the one by hand, and so many milliseconds more."""

PATIENCE = 60.0
Request = tuple[str, str, object]


@dataclass
class Recorder(LocalHost):
    """A host that remembers how a VMM was started. argv: of the last child. requests: of its interface."""

    argv: Sequence[str] = ()
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    async def spawn(
        self, name: str, argv: Sequence[str], *, fds: Mapping[int, int], **more: Any
    ) -> LocalChild:
        """See Host."""
        self.argv = argv
        return await super().spawn(name, argv, fds=fds, **more)


# -- by the driver ------------------------------------------------------------------------------------------


async def by_driver(monitor: Vmm, spec: Any, sign: asyncio.Future[float], host: Recorder) -> float:
    """Seconds from the description to the guest's sign."""
    begin = time.monotonic()
    try:
        await monitor.prepare(spec)  # type: ignore[attr-defined]
        await monitor.run()
        async with asyncio.timeout(PATIENCE):
            return await sign - begin
    finally:
        await monitor.stop()
        await host.aclose()


@contextlib.contextmanager
def watching(host: Recorder) -> Iterator[asyncio.Future[float]]:
    """The moment at which the sign is read from any console, and the requests on the way to it."""
    sign: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    received, ask = output_tail.Follower.data_received, RestClient.request

    def data_received(self: output_tail.Follower, data: bytes) -> None:
        if SIGN in data and not sign.done():
            sign.set_result(time.monotonic())
        received(self, data)

    async def request(self: RestClient, method: str, path: str, body: object = None, **more: Any) -> Any:
        if method == "PUT" and not sign.done():
            host.requests.append((method, self._base + path, body))
        return await ask(self, method, path, body, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_tail.Follower, "data_received", data_received)
        patch.setattr(RestClient, "request", request)
        yield sign


# -- by hand ------------------------------------------------------------------------------------------------


def by_hand(argv: Sequence[str], open_channels: Callable[[Channels], None], directory: Path) -> float:
    """Seconds from the start of the process to the guest's sign."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        channels = Channels(directory, ours, theirs)
        open_channels(channels)
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, source, target) for target, source in channels.fds.items()]
        begin = time.monotonic()
        pid = os.posix_spawn(argv[0], list(argv), {}, file_actions=actions)
        try:
            theirs.close()
            channels.ask()
            while SIGN not in (data := os.read(channels.console, 4096)):
                if not data:
                    raise HypervisorError(f"{argv[0]} ended without the guest's sign")
            return time.monotonic() - begin
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


class Channels:
    """What a process started by hand is connected to. Descriptors in it are at least 100 before it starts."""

    def __init__(self, directory: Path, ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> None:
        self.directory = directory
        self.fds: dict[int, int] = {}
        self.console = -1
        self.api: socket.socket | str | None = None
        self.requests: list[Request] = []
        self._ours, self._theirs = ours, theirs

    def give(self, target: int, descriptor: int) -> None:
        """Let the process have a descriptor under this number."""
        copy = os.dup2(descriptor, 100 + target)
        self._theirs.callback(os.close, copy)
        self.fds[target] = copy

    def pair(self, target: int) -> int:
        """Let it have one end of a pair of sockets; return the other."""
        here, there = socket.socketpair()
        self._ours.callback(here.close)
        self.give(target, there.fileno())
        there.close()
        return here.fileno()

    def pipe(self, target: int) -> int:
        """Let it have a pipe to write to; return the end to read."""
        here, there = os.pipe()
        self._ours.callback(os.close, here)
        self.give(target, there)
        os.close(there)
        return here

    def listener(self, target: int) -> socket.socket:
        """Let it have a listening socket; return a connection to it."""
        path = self.directory / "listener"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            self.give(target, listening.fileno())
        connection = socket.socket(socket.AF_UNIX)
        self._ours.callback(connection.close)
        connection.connect(str(path))
        path.unlink()
        return connection

    def ask(self) -> None:
        """Send the requests, one after the other; the last one's answer is not waited for."""
        if isinstance(self.api, str):
            self.api = self._ours.enter_context(_connect(self.api))
        if self.api is None:
            return
        for number, (method, path, body) in enumerate(self.requests, 1):
            content = b"" if body is None else json.dumps(body).encode()
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
            kind = "Content-Type: application/json\r\n" if content else ""
            self.api.sendall(f"{head}{kind}\r\n".encode() + content)
            if number < len(self.requests):
                _answer(self.api, path)


def _connect(path: str) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        if connection.connect_ex(path) == 0:
            return connection
        connection.close()
        time.sleep(0.001)


def _answer(connection: socket.socket, path: str) -> None:
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += connection.recv(4096)
    if not seen.startswith((b"HTTP/1.1 200", b"HTTP/1.1 204")):
        raise HypervisorError(f"{path}: {seen.decode(errors='replace')}")


# -- the contenders -----------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One driver. make: a machine on a host; spec: its description in a directory; channels: by hand."""

    name: str
    make: Callable[[Recorder], Vmm]
    spec: Callable[[Path, contextlib.ExitStack], Any]
    channels: Callable[[Recorder], Callable[[Channels], None]]
    argv_by_hand: Callable[[Sequence[str]], Sequence[str]] = lambda argv: argv

    async def round(self) -> tuple[float, float]:
        """A start by the driver, then one by hand."""
        host = Recorder()
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held, watching(host) as sign:
            directory = Path(name)
            monitor, spec = self.make(host), self.spec(directory, held)
            if isinstance(spec, UnikernelSpec):
                _sign_on(spec, sign, held)
            driven = await by_driver(monitor, spec, sign, host)
            argv = self.argv_by_hand(host.argv)
            manual = await asyncio.to_thread(by_hand, argv, self.channels(host), directory)
        return driven, manual


def _sign_on(spec: UnikernelSpec, sign: asyncio.Future[float], held: contextlib.ExitStack) -> None:
    """The sign of a unikernel comes on its output, whose other end has the next number."""
    loop = asyncio.get_running_loop()
    reader = OUTPUTS[spec.output]

    def future() -> None:
        if not sign.done():
            sign.set_result(time.monotonic())
        loop.remove_reader(reader)

    loop.add_reader(reader, future)
    held.callback(loop.remove_reader, reader)


OUTPUTS: dict[int, socket.socket] = {}


def _machine(directory: Path, held: contextlib.ExitStack) -> VmSpec:
    path = directory / "kernel"
    path.write_bytes(kernel(say(SIGN) + HALT_FOREVER, pvh=True))
    return VmSpec("bench", directory, vcpus=1, memory_mib=128, kernel=path)


def _qemu_channels(host: Recorder) -> Callable[[Channels], None]:
    def open_channels(channels: Channels) -> None:
        channels.pair(qemu.MONITOR)
        channels.console = channels.pair(qemu.CONSOLE)
        if (vsock := vhost_vsock.open_device()) is None:
            channels.pair(qemu.AGENT)
        else:
            channels.give(qemu.AGENT, vsock[0])
            os.close(vsock[0])

    return open_channels


def _clh_channels(host: Recorder) -> Callable[[Channels], None]:
    def open_channels(channels: Channels) -> None:
        channels.requests = host.requests
        channels.console = channels.pipe(clh.CONSOLE)
        channels.pipe(clh.EVENTS)
        channels.api = channels.listener(clh.API)

    return open_channels


def _firecracker_channels(host: Recorder) -> Callable[[Channels], None]:
    def open_channels(channels: Channels) -> None:
        channels.requests = host.requests
        channels.console = channels.pipe(1)
        channels.api = host.argv[host.argv.index("--api-sock") + 1]

    return open_channels


def _tender_channels(content: bytes) -> Callable[[Recorder], Callable[[Channels], None]]:
    def of(host: Recorder) -> Callable[[Channels], None]:
        def open_channels(channels: Channels) -> None:
            channels.console = channels.pair(tender.STDOUT)
            file = _file(content)
            channels.give(tender.FILE, file)
            os.close(file)

        return open_channels

    return of


def _file(content: bytes) -> int:
    descriptor = os.memfd_create("unikernel")
    os.write(descriptor, content)
    return descriptor


def _unikernel(content: bytes) -> Callable[[Path, contextlib.ExitStack], UnikernelSpec]:
    def spec(directory: Path, held: contextlib.ExitStack) -> UnikernelSpec:
        ours, theirs = socket.socketpair()
        held.callback(ours.close)
        held.callback(theirs.close)
        OUTPUTS[theirs.fileno()] = ours
        file = _file(content)
        held.callback(os.close, file)
        return UnikernelSpec("bench", directory, 32, "app", file, theirs.fileno(), command_line=LINE)

    return spec


def _driver(name: str, model: Any, program: Path, **settings: Any) -> Callable[[Recorder], Hypervisor]:
    return lambda host: registry.create(name, model(path=program, kernel=Path("/unused"), **settings), host)


def _tender(name: str, model: Any, program: Path) -> Callable[[Recorder], UnikernelVmm]:
    return lambda host: registry.create_for_unikernel(name, model(path=program), host)


def contenders(only: Sequence[str]) -> Iterator[Contender | str]:
    """Those that can be measured here; of the others, why not."""
    accelerator = "kvm" if probe_kvm().runs_unmodified_guests else "tcg"
    for name, variable, program in PROGRAMS:
        if only and name not in only:
            continue
        found = os.environ.get(variable) or shutil.which(program)
        if not found or not Path(found).exists():
            yield f"{name}: {program} is missing: put it on PATH, or name it in {variable}"
        elif name == "qemu":
            make = _driver(name, QemuHypervisor, Path(found), accelerator=accelerator)
            waits = lambda argv: [word for word in argv if word != "-S"]  # noqa: E731 - by hand it runs at once
            yield Contender(f"qemu ({accelerator})", make, _machine, _qemu_channels, waits)
        elif name == "clh":
            make = _driver(name, CloudHypervisor, Path(found))
            yield Contender(name, make, _machine, _clh_channels)
        elif name == "firecracker":
            make = _driver(name, Firecracker, Path(found))
            yield Contender(name, make, _machine, _firecracker_channels)
        else:
            model = Solo5Hvt if name == "solo5-hvt" else Solo5Spt
            content = _guest(name)
            behind_the_gate = lambda argv: argv[3:]  # noqa: E731 - sh -c GATE, and then the tender's own
            yield Contender(
                name,
                _tender(name, model, Path(found)),
                _unikernel(content),
                _tender_channels(content),
                behind_the_gate,
            )


def _guest(name: str) -> bytes:
    """A unikernel that prints its command line."""
    if name == "solo5-spt":
        return unikernel_file(abi=abi_note(TARGETS[name]), code=spt_code(LINE))
    with tempfile.TemporaryDirectory() as directory:
        return build_unikernel(Path(directory)).read_bytes()


PROGRAMS = (
    ("qemu", "KATA_TEST_QEMU", "qemu-system-x86_64"),
    ("clh", "KATA_TEST_CLOUD_HYPERVISOR", "cloud-hypervisor"),
    ("firecracker", "KATA_TEST_FIRECRACKER", "firecracker"),
    ("solo5-hvt", "KATA_TEST_SOLO5_HVT", "solo5-hvt"),
    ("solo5-spt", "KATA_TEST_SOLO5_SPT", "solo5-spt"),
)


async def measure(contender: Contender, rounds: int) -> list[tuple[float, float]]:
    """Pairs of milliseconds, by the driver and by hand; without the first round, which warms the caches."""
    pairs = [await contender.round() for _ in range(rounds + 1)]
    return [(driven * 1e3, manual * 1e3) for driven, manual in pairs[1:]]


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="names of drivers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows, notes = [], []
    for contender in contenders(arguments.only):
        if isinstance(contender, str):
            notes.append(contender)
            continue
        try:
            pairs = asyncio.run(measure(contender, arguments.rounds))
        except (HypervisorError, TimeoutError) as error:
            notes.append(f"{contender.name}: does not run here: {str(error).partition(chr(10))[0]}")
            continue
        driven, manual = (statistics.median(column) for column in zip(*pairs, strict=True))
        allowed = [driven / (manual * FACTOR + CONSTANT_MS) for driven, manual in pairs]
        record(f"start by {contender.name}, over what is allowed", allowed, budget=1.0)
        least = [min(column) for column in zip(*pairs, strict=True)]
        rows.append(
            {
                "driver": contender.name,
                "driven_ms": round(driven, 1),
                "by_hand_ms": round(manual, 1),
                "ratio": round(statistics.median(a / b for a, b in pairs), 3),
                "least_ms": [round(value, 1) for value in least],
                "within": driven <= manual * FACTOR + CONSTANT_MS,
            }
        )
    print(json.dumps(rows, indent=1) if arguments.json else _table(rows, notes))
    return 0


def _table(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    head = (
        f"{'from description to first instruction':40} {'driver':>10} {'by hand':>10} {'added':>10}  budget"
    )
    lines = [head]
    for row in rows:
        added = row["driven_ms"] - row["by_hand_ms"]
        allowed = row["by_hand_ms"] * (FACTOR - 1) + CONSTANT_MS
        result = "kept" if row["within"] else "MISSED"
        least = "least {} and {} ms".format(*row["least_ms"])
        lines.append(
            f"{row['driver']:34} {row['driven_ms']:8.1f}ms {row['by_hand_ms']:8.1f}ms {added:8.1f}ms  "
            f"{allowed:.1f}ms: {result}; {least}"
        )
    return "\n".join([*lines, *notes])


if __name__ == "__main__":
    sys.exit(main())
