"""containerd's part played without containerd: bundles, `start`, the events' sink, and the shim's two APIs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import tomli
import tomli_w
from google.protobuf import symbol_database
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

import kata_configuration
from fifo_stdio import Input, Output
from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.server import Handler, Server
from kata_agent.ttrpc.service import service_of
from kata_hypervisor.kvm.probe import probe_kvm
from kata_runtime.containerd_api import events_pb2, forward_pb2, sandbox_pb2, task_pb2, types_pb2
from kata_runtime.ctl.shim import install_launcher
from kata_runtime.identity import SandboxIdentity
from oci_bundle import make_process, make_spec, write_bundle, write_rootfs

SHIM = "containerd-shim-kata-v2"
NAMESPACE = "api-test"
TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/"
PATIENCE = 60.0
"""Seconds that any one call, event or stream may take; a test that needs more is broken."""

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
NEEDED = (
    IMAGE / "vmlinuz",
    Path("/usr/bin/qemu-system-x86_64"),
    Path("/usr/lib/qemu/virtiofsd"),
    Path("/bin/busybox"),
)


def missing() -> str | None:
    """Why these tests cannot run here; None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [str(path) for path in NEEDED if not path.exists()]
    return f"needs {', '.join(absent)}" if absent else None


class EventSink:
    """containerd's event service. events: what came, in order, as (topic, message)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[tuple[str, Any]] = []
        self.envelopes: list[types_pb2.Envelope] = []
        self._news = anyio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    async def __aenter__(self) -> EventSink:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def open(self) -> None:
        """Begin, or begin again, to listen."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(128)
        service = service_of(forward_pb2.DESCRIPTOR.services_by_name["Events"])
        handler = Handler(service.methods["Forward"].request, self._forward)
        server = Server({(service.full_name, "Forward"): handler})
        self._serving = asyncio.create_task(server.serve(self._listener))

    async def close(self) -> None:
        """Be away: existing connections end, new ones are refused."""
        if self._serving is None or self._listener is None:
            return
        self._serving.cancel()
        await asyncio.wait([self._serving])
        self._listener.close()
        self.path.unlink()
        self._serving = self._listener = None

    async def _forward(self, request: Any) -> Empty:
        envelope = request.envelope
        kind = symbol_database.Default().GetSymbol(envelope.event.type_url)
        self.envelopes.append(envelope)
        self.events.append((envelope.topic, kind.FromString(envelope.event.value)))
        self._news.set()
        self._news = anyio.Event()
        return Empty()

    def topics(self, container_id: str) -> list[str]:
        """The topics of a container's events so far, in order, without their common prefix."""
        return [
            topic.removeprefix("/tasks/") for topic, event in self.events if event.container_id == container_id
        ]

    def of(self, container_id: str, topic: str) -> list[Any]:
        """A container's events of one kind."""
        return [
            event
            for name, event in self.events
            if name == f"/tasks/{topic}" and event.container_id == container_id
        ]

    async def wait_for(self, container_id: str, topic: str, count: int = 1) -> Any:
        """Wait until that many events of this kind came; returns the last of them."""
        with anyio.fail_after(PATIENCE):
            while len(found := self.of(container_id, topic)) < count:
                await self._news.wait()
        return found[count - 1]


@dataclass(frozen=True)
class Finished:
    """How a process ended and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output; fails when the process did not succeed, or wrote to standard error."""
        assert (self.status, self.stderr) == (0, b""), self
        return self.stdout.decode()


class Streams:
    """The FIFOs of one process in a directory of their own."""

    def __init__(
        self, directory: Path, *, stdin: bool = False, output: bool = True, terminal: bool = False
    ) -> None:
        directory.mkdir(parents=True)
        self.terminal = terminal
        self.stdin = Input(directory / "stdin") if stdin else None
        self.stdout = Output(directory / "stdout") if output else None
        self.stderr = Output(directory / "stderr") if output and not terminal else None

    @property
    def fields(self) -> dict[str, Any]:
        """What a Create or Exec request says of them."""
        named = {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr}
        paths = {name: str(fifo.path) for name, fifo in named.items() if fifo is not None}
        return {**paths, "terminal": self.terminal}

    def open_outputs(self) -> None:
        for fifo in (self.stdout, self.stderr):
            if fifo is not None:
                fifo.open()

    def close(self) -> None:
        for fifo in (self.stdin, self.stdout, self.stderr):
            if fifo is not None:
                fifo.close()


class Process:
    """A container's first process (exec_id is empty) or an exec, as a client of containerd sees it."""

    def __init__(self, shim: Shim, container_id: str, exec_id: str, streams: Streams) -> None:
        self.shim = shim
        self.id = container_id
        self.exec_id = exec_id
        self.streams = streams

    async def call(self, method: str, **fields: Any) -> Any:
        """Call a method of the task service about this process."""
        return await self.shim.task(method, id=self.id, exec_id=self.exec_id, **fields)

    async def start(self) -> int:
        """Start; returns the pid that containerd is told."""
        pid: int = (await self.call("Start")).pid
        return pid

    async def wait(self) -> int:
        """The exit status."""
        status: int = (await self.call("Wait")).exit_status
        return status

    async def kill(self, number: int = 9, *, everyone: bool = False) -> None:
        await self.call("Kill", signal=number, all=everyone)

    async def delete(self) -> int:
        """Delete; returns the exit status."""
        try:
            status: int = (await self.call("Delete")).exit_status
        finally:
            self.streams.close()
        return status

    async def close_stdin(self) -> None:
        await self.call("CloseIO", stdin=True)

    async def resize(self, columns: int, rows: int) -> None:
        await self.call("ResizePty", width=columns, height=rows)

    async def state(self) -> Any:
        return await self.call("State")

    async def finish(self, stdin: bytes | None = None) -> Finished:
        """Feed it, read what it writes, wait for its end and delete it."""
        outputs: dict[str, bytes] = {"stdout": b"", "stderr": b""}

        async def feed(fifo: Input, data: bytes) -> None:
            await fifo.write(data)
            fifo.close()

        async def read(name: str, fifo: Output) -> None:
            outputs[name] = await fifo.read_all()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                if self.streams.stdin is not None:
                    group.start_soon(feed, self.streams.stdin, stdin or b"")
                for name in outputs:
                    fifo = getattr(self.streams, name)
                    if fifo is not None:
                        group.start_soon(read, name, fifo)
                status = await self.wait()
                deleted = await self.delete_keeping_streams()
        self.streams.close()
        assert deleted == status
        return Finished(status, **outputs)

    async def delete_keeping_streams(self) -> int:
        """Delete, while somebody still reads the streams."""
        status: int = (await self.call("Delete")).exit_status
        return status


class Lab:
    """A directory with everything that shims need, and the sink for their events."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kata-api-", dir="/var/tmp"))
        self.sink = EventSink(self.directory / "events.sock")
        self.rootfs = self.directory / "rootfs"
        self.launcher = self.directory / SHIM
        self.configuration = self.directory / "configuration.toml"
        self._count = 0
        write_rootfs(self.rootfs)
        install_launcher(self.launcher)
        self.configure()

    def configure(self, **qemu: object) -> None:
        """Write the shipped configuration with this machine's paths and these changes."""
        shipped = Path(str(kata_configuration.__file__)).parent / "shipped" / "configuration-qemu.toml"
        tree = tomli.loads(shipped.read_text())
        tree["hypervisor"]["qemu"] |= {
            "kernel": str(IMAGE / "vmlinuz"),
            "initrd": str(IMAGE / "kata-initrd.img"),
            "image": str(IMAGE / "kata-image.erofs"),
            "accelerator": "kvm" if probe_kvm().runs_unmodified_guests else "tcg",
            **qemu,
        }
        self.configuration.write_text(tomli_w.dumps(tree))
        self.configuration.chmod(0o644)

    def new_id(self, kind: str) -> str:
        """An id that no other of this lab has."""
        self._count += 1
        return f"{kind}-{self._count}"

    @property
    def address(self) -> str:
        """What containerd would say its address is; it makes the sandboxes of this lab its own."""
        return f"{self.directory}/containerd.sock"

    def identity(self, sandbox_id: str, **where: str) -> SandboxIdentity:
        """Who a sandbox of this lab is."""
        return SandboxIdentity(self.address, NAMESPACE, sandbox_id, **where)

    def bundle(self, container_id: str, spec: dict[str, Any] | str) -> Path:
        """Make a bundle, with the FIFO for the shim's log."""
        path = self.directory / "bundles" / container_id
        write_bundle(path, spec)
        os.mkfifo(path / "log", 0o600)
        return path

    def overlay(self, container_id: str) -> types_pb2.Mount:
        """A root file system of its own over the common one, as a snapshotter gives it."""
        home = self.directory / "snapshots" / container_id
        for name in ("upper", "work"):
            (home / name).mkdir(parents=True)
        options = [f"lowerdir={self.rootfs}", f"upperdir={home}/upper", f"workdir={home}/work"]
        return types_pb2.Mount(type="overlay", source="overlay", options=options)

    async def launch(
        self,
        action: str,
        bundle: Path,
        container_id: str,
        *words: str,
        stdin: bytes = b"",
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the shim's executable as containerd does, in the bundle."""
        command = [str(self.launcher), "-namespace", NAMESPACE, "-address", self.address, "-id", container_id]
        with anyio.fail_after(PATIENCE):
            return await anyio.run_process(
                [*command, *words, action],
                input=stdin,
                cwd=bundle,
                check=False,
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "TTRPC_ADDRESS": str(self.sink.path),
                    "KATA_CONF_FILE": str(self.configuration),
                    **(environment or {}),
                },
            )

    async def start_shim(self, sandbox_id: str, spec: dict[str, Any] | str, **how: Any) -> Shim:
        """Start the shim of a new sandbox whose first container has this specification."""
        bundle = self.bundle(sandbox_id, spec)
        log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        answer = await self.launch("start", bundle, sandbox_id, **how)
        assert (answer.returncode, answer.stderr) == (0, b""), answer
        return await Shim.connect(self, sandbox_id, bundle, answer.stdout.decode(), log)

    def leftovers(self, identity: SandboxIdentity) -> list[str]:
        """What of a sandbox is still on this machine: files, mounts, cgroups, processes."""
        found = [path for path in (identity.directory, identity.socket) if os.path.lexists(path)]
        marks = (identity.key[:32], f"{NAMESPACE} -address {self.address} -id {identity.id} ")
        for place in ("mountinfo", "cmdline"):
            for path in Path("/proc").glob(f"[0-9]*/{place}"):
                try:
                    text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue  # it has ended meanwhile
                found += [f"{path}: {mark}" for mark in marks if mark in text]
        for root, directories, _ in os.walk("/sys/fs/cgroup"):
            found += [f"{root}/{name}" for name in directories if identity.key[:32] in name]
        return found

    async def assert_nothing_left(self, identity: SandboxIdentity) -> None:
        """What ends is given a moment; what then remains fails the test."""
        with anyio.move_on_after(10):
            while self.leftovers(identity):
                await anyio.sleep(0.05)
        if left := self.leftovers(identity):
            pytest.fail("\n".join(["left behind:", *left]))

    def remove(self) -> None:
        shutil.rmtree(self.directory)


class Shim:
    """A running shim and the client's side of its socket."""

    def __init__(self, lab: Lab, sandbox_id: str, bundle: Path, address: str, log: int, client: Client) -> None:
        self.lab = lab
        self.id = sandbox_id
        self.bundle = bundle
        self.address = address
        self.client = client
        self._log = log
        self._lines = ""

    @classmethod
    async def connect(cls, lab: Lab, sandbox_id: str, bundle: Path, address: str, log: int) -> Shim:
        """Connect to the address that `start` printed."""
        return cls(lab, sandbox_id, bundle, address, log, await connect(address))

    @property
    def identity(self) -> SandboxIdentity:
        """Who its sandbox is."""
        return self.lab.identity(self.id, socket_root=os.path.dirname(self.address.removeprefix("unix://")))

    @property
    def log(self) -> str:
        """What it has logged so far."""
        while True:
            try:
                self._lines += os.read(self._log, 1 << 16).decode()
            except BlockingIOError:
                return self._lines

    async def task(self, method: str, *, version: int = 2, **fields: Any) -> Any:
        """Call a method of the task service with those of the fields that its request has."""
        return await self._call(task_pb2, "Task", f"containerd.task.v{version}.Task", method, fields)

    async def sandbox(self, method: str, **fields: Any) -> Any:
        """Call a method of the sandbox service."""
        fields = {"sandbox_id": self.id, **fields}
        return await self._call(sandbox_pb2, "Sandbox", "containerd.runtime.sandbox.v1.Sandbox", method, fields)

    async def _call(self, module: Any, name: str, service: str, method: str, fields: dict[str, Any]) -> Message:
        described = service_of(module.DESCRIPTOR.services_by_name[name]).methods[method]
        known = described.request.DESCRIPTOR.fields_by_name
        request = described.request(**{key: value for key, value in fields.items() if key in known})
        return await self.client.call(service, method, request, described.response, timeout=PATIENCE)

    async def create(
        self,
        spec: dict[str, Any] | None = None,
        *,
        container_id: str | None = None,
        rootfs: Iterable[types_pb2.Mount] | None = None,
        streams: dict[str, bool] | None = None,
        late: bool = False,
    ) -> Process:
        """Create a container. late: the client does not open the output yet."""
        container_id = container_id or self.lab.new_id("c")
        bundle = self.bundle if spec is None else self.lab.bundle(container_id, spec)
        fifos = Streams(bundle / "io", **(streams or {}))
        if not late:
            fifos.open_outputs()
        mounts = [self.lab.overlay(container_id)] if rootfs is None else list(rootfs)
        try:
            await self.task("Create", id=container_id, bundle=str(bundle), rootfs=mounts, **fifos.fields)
        except BaseException:
            fifos.close()
            raise
        return Process(self, container_id, "", fifos)

    async def close(self) -> None:
        """End the shim whatever runs in it, and see that nothing of it is left."""
        if not self.client.closed:
            await self.task("Shutdown", id=self.id, now=True)
            with anyio.fail_after(PATIENCE):
                await self.client.wait_closed()
        await self.client.aclose()
        os.close(self._log)
        await self.lab.assert_nothing_left(self.identity)


async def connect(address: str) -> Client:
    """A client of the shim at an address that begins with unix://."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(address.removeprefix("unix://"))
    return await Client.from_socket(sock)


class Pod:
    """A pod whose first container sleeps, for all the containers and execs that a test wants."""

    def __init__(self, shim: Shim, first: Process) -> None:
        self.shim = shim
        self.first = first

    @classmethod
    async def start(cls, lab: Lab) -> Pod:
        """Boot a pod."""
        sandbox_id = lab.new_id("pod")
        spec = make_spec(
            make_process("sleep", "100000"),
            hostname="pod-host",
            annotations={"io.kubernetes.cri.container-type": "sandbox"},
        )
        shim = await lab.start_shim(sandbox_id, spec)
        first = await shim.create(container_id=sandbox_id)
        await first.start()
        return cls(shim, first)

    def spec(self, *args: str, process: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        """The specification of a further container; see make_process and make_spec for the changes."""
        annotations = {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": self.shim.id,
        }
        return make_spec(make_process(*args, **(process or {})), annotations=annotations, **changes)

    async def create(
        self, *args: str, rootfs: Iterable[types_pb2.Mount] | None = None, late: bool = False, **changes: Any
    ) -> Process:
        """Create a container. stdin, output, terminal: which streams it has, see Streams."""
        streams = {name: changes.pop(name) for name in ("stdin", "output", "terminal") if name in changes}
        if streams.get("terminal"):
            changes["process"] = {"terminal": True, **changes.get("process", {})}
        return await self.shim.create(self.spec(*args, **changes), rootfs=rootfs, streams=streams, late=late)

    async def start_container(self, *args: str, **changes: Any) -> Process:
        """Create and start a container."""
        process = await self.create(*args, **changes)
        await process.start()
        return process

    async def run(self, *args: str, stdin: bytes | None = None, **changes: Any) -> Finished:
        """Run a container to its end."""
        process = await self.start_container(*args, stdin=stdin is not None, **changes)
        return await process.finish(stdin)

    async def add_exec(
        self,
        *args: str,
        container: Process | None = None,
        exec_id: str | None = None,
        streams: dict[str, bool] | None = None,
        **process: Any,
    ) -> Process:
        """Record an exec, in the first container if no other is named."""
        exec_id = exec_id or self.shim.lab.new_id("e")
        target = container or self.first
        terminal = bool(streams and streams.get("terminal"))
        fifos = Streams(self.shim.bundle / f"io-{self.shim.lab.new_id('x')}", **(streams or {}))
        fifos.open_outputs()
        spec = json.dumps(make_process(*args, terminal=terminal, **process)).encode()
        packed = PackedAny(type_url=f"{TYPE_URL}Process", value=spec)
        try:
            await self.shim.task("Exec", id=target.id, exec_id=exec_id, spec=packed, **fifos.fields)
        except BaseException:
            fifos.close()
            raise
        return Process(self.shim, target.id, exec_id, fifos)

    async def start_exec(self, *args: str, **how: Any) -> Process:
        """Record and start an exec."""
        process = await self.add_exec(*args, **how)
        try:
            await process.start()
        except BaseException:
            process.streams.close()
            raise
        return process

    async def exec(self, *args: str, stdin: bytes | None = None, **how: Any) -> Finished:
        """Run an exec to its end."""
        streams = {"stdin": stdin is not None, **how.pop("streams", {})}
        return await (await self.start_exec(*args, streams=streams, **how)).finish(stdin)


__all__ = ["EventSink", "Finished", "Lab", "Pod", "Process", "Shim", "Streams", "connect", "events_pb2", "missing"]
_ = sys
