"""containerd's part played without containerd: bundles, `start`, and the shim's two services."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
from google.protobuf.message import Message

import shipped_configuration
from event_sink import EventSink
from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.service import service_of
from kata_runtime.containerd_api import sandbox_pb2, task_pb2, types_pb2
from kata_runtime.ctl.shim import install_launcher
from kata_runtime.identity import SandboxIdentity
from leftovers import Leftovers
from oci_bundle import write_bundle, write_rootfs
from patience import PATIENCE
from shim_process import Process, Streams
from shipped_configuration import Value

SHIM = "containerd-shim-kata-v2"


class Lab:
    """A directory with everything that shims need, and the sink for their events."""

    def __init__(self, image: Path) -> None:
        # Short, for the paths of sockets; fit for a namespace, which may not end with "_"; and root's alone,
        # because the shim takes no other configuration.
        self.directory = Path(tempfile.mkdtemp(prefix="ka-", suffix="x", dir="/run"))
        self.namespace = self.directory.name
        self.sink = EventSink(self.directory / "events.sock")
        # containerd's root, with the directory of a snapshotter.
        self.root = self.directory / "root"
        self.snapshots = self.root / "io.containerd.snapshotter.v1.lab" / "snapshots"
        self.rootfs = self.snapshots / "rootfs"
        self.launcher = self.directory / SHIM
        self.address = f"{self.directory}/containerd.sock"
        self.sandboxes: list[SandboxIdentity] = []
        self.logs: dict[Path, int] = {}
        self.shims: list[Shim] = []
        self._values = shipped_configuration.for_image(image)
        self._count, self._mark = 0, secrets.token_hex(3)
        write_rootfs(self.rootfs)
        install_launcher(self.launcher)
        self.configuration = self.configure("configuration")

    def configure(self, name: str, /, **values: Value) -> Path:
        """Write NAME.toml: the shipped configuration with these keys changed."""
        path = self.directory / f"{name}.toml"
        path.write_text(shipped_configuration.render(self._values | values))
        return path

    def polling_launcher(self) -> Path:
        """A shim that does not know of raw streams, as upstream's: it reads and writes with calls."""
        path = self.directory / f"{SHIM}-polling"
        line = "from kata_runtime.shim.launcher import main\n"
        text = self.launcher.read_text()
        assert line in text
        patch = 'import kata_agent.constants\n\nkata_agent.constants.FEATURE_STREAM_IO = "unknown"\n'
        path.write_text(text.replace(line, patch + line))
        path.chmod(0o755)
        return path

    def new_id(self, kind: str) -> str:
        """An id that nothing else on this host has: processes are told apart by it, see Leftovers."""
        self._count += 1
        return f"{kind}-{self._count}-{self._mark}"

    def identity(self, sandbox_id: str, **where: str) -> SandboxIdentity:
        """Who a sandbox of this lab is; it is looked for in `leftovers` from here on."""
        identity = SandboxIdentity(self.address, self.namespace, sandbox_id, **where)
        self.sandboxes.append(identity)
        return identity

    def bundle(self, container_id: str, spec: dict[str, Any] | str) -> Path:
        """Make a bundle, with the FIFO for the shim's log."""
        path = self.directory / "bundles" / container_id
        write_bundle(path, spec)
        os.mkfifo(path / "log", 0o600)
        work = self.root / "io.containerd.runtime.v2.task" / self.namespace / container_id
        (path / "work").symlink_to(work)
        # containerd reads it from before the start on.
        self.logs[path] = os.open(path / "log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return path

    def overlay(self, container_id: str) -> types_pb2.Mount:
        """A root file system of its own over the common one, as a snapshotter gives it."""
        home = self.snapshots / container_id
        for name in ("upper", "work"):
            (home / name).mkdir(parents=True)
        options = [f"lowerdir={self.rootfs}", f"upperdir={home}/upper", f"workdir={home}/work"]
        return types_pb2.Mount(type="overlay", source="overlay", options=options)

    async def launch(
        self,
        action: str,
        bundle: Path,
        container_id: str,
        *arguments: str,
        stdin: bytes = b"",
        environment: dict[str, str] | None = None,
        launcher: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the shim's executable as containerd does, in the bundle."""
        command = [str(launcher or self.launcher), "-namespace", self.namespace, "-address", self.address]
        with anyio.fail_after(PATIENCE):
            return await anyio.run_process(
                [*command, "-id", container_id, *arguments, action],
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
        self.identity(sandbox_id)
        bundle = self.bundle(sandbox_id, spec)
        answer = await self.launch("start", bundle, sandbox_id, **how)
        assert (answer.returncode, answer.stderr) == (0, b""), answer
        return await Shim.connect(self, sandbox_id, bundle, answer.stdout.decode())

    def leftovers(self) -> Leftovers:
        """The state of the host now, to compare with later."""
        return Leftovers(self.directory, self.namespace, lambda: self.sandboxes)

    async def close(self) -> None:
        """End the shims that a failed test has left."""
        for shim in list(self.shims):
            await shim.close()

    def remove(self) -> None:
        """Delete everything."""
        for log in self.logs.values():
            os.close(log)
        shutil.rmtree(self.directory)


class Shim:
    """A running shim and the client's side of its socket."""

    def __init__(self, lab: Lab, sandbox_id: str, bundle: Path, address: str, client: Client) -> None:
        self.lab = lab
        self.id = sandbox_id
        self.bundle = bundle
        self.address = address
        self.client = client
        self._log = lab.logs.pop(bundle)
        lab.shims.append(self)
        self._lines = ""

    @classmethod
    async def connect(cls, lab: Lab, sandbox_id: str, bundle: Path, address: str) -> Shim:
        """Connect to the address that `start` printed."""
        return cls(lab, sandbox_id, bundle, address, await connect(address))

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
        return await self._call(
            sandbox_pb2, "Sandbox", "containerd.runtime.sandbox.v1.Sandbox", method, fields
        )

    async def _call(
        self, module: Any, name: str, service: str, method: str, fields: dict[str, Any]
    ) -> Message:
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

    async def ended(self) -> None:
        """Wait until it hangs up."""
        with anyio.fail_after(PATIENCE):
            await self.client.wait_closed()

    async def close(self) -> None:
        """End the shim, whatever runs in it."""
        self.lab.shims.remove(self)
        if not self.client.closed:
            await self.task("Shutdown", id=self.id, now=True)
            await self.ended()
        await self.client.aclose()
        os.close(self._log)


async def connect(address: str) -> Client:
    """A client of the shim at an address that begins with unix://."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(address.removeprefix("unix://"))
    return await Client.from_socket(sock)
