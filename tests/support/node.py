"""A node to test on: a containerd of its own, our shim, a small container image, and ctr."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import busybox_image
import shipped_configuration
from containerd_versions import Programs
from kata_runtime.broker import processes
from kata_runtime.ctl.running import RecordedSandbox, running_sandboxes
from kata_runtime.ctl.shim import NAMES, install_launcher
from kata_runtime.identity import SandboxIdentity
from leftovers import Leftovers
from patience import PATIENCE
from private_containerd import PrivateContainerd
from shipped_configuration import Value

RUNTIME = "io.containerd.kata.v2"
IMAGE = busybox_image.NAME
FOREVER = ("sleep", "3600")

_TYPE = "io.kubernetes.cri.container-type"
_SANDBOX = "io.kubernetes.cri.sandbox-id"
# Seconds; a machine in an emulated machine takes more.
_CTR_BUDGET = max(110.0, PATIENCE)

Result = subprocess.CompletedProcess[str]


class Node:
    """One containerd and what runs on it.

    image: directory of the guest image. cri: settings of the CRI plugin, which is off without.
    """

    def __init__(self, programs: Programs, image: Path, *, cri: str = "") -> None:
        self.programs = programs
        # Short, because the paths of sockets below it may have 107 bytes only; root's alone, because the
        # shim takes a configuration from its environment only if nobody else could have changed it.
        self.namespace = f"kt{secrets.token_hex(3)}"
        self.root = Path("/run") / self.namespace
        self.root.mkdir(mode=0o700)
        self._values = shipped_configuration.for_image(image)
        self._ids: list[str] = []
        shims = self.root / "bin"
        shims.mkdir()
        for name in NAMES:
            install_launcher(shims / name)
        runc = programs.ctr.parent / "containerd-shim-runc-v2"
        if runc.exists():  # another version's does not understand this containerd
            (shims / runc.name).symlink_to(runc)
        self.containerd = PrivateContainerd(
            self.root / "data",
            self.root,
            shim_directory=shims,
            environment={"KATA_CONF_FILE": str(self.configuration("default"))},
            containerd=str(programs.containerd),
            ctr=str(programs.ctr),
            cri=bool(cri),
            extra_config=cri,
        )
        if cri:
            self.namespace = "k8s.io"

    def start(self) -> None:
        """Start containerd and import the container image."""
        self.containerd.start()
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory) / "image.tar"
            busybox_image.write_image(archive)
            self.ctr("image", "import", archive)

    def close(self) -> None:
        """End containerd, and whatever a failed test left running on it."""
        for sandbox in self.sandboxes():
            self.ctr("task", "rm", "--force", sandbox, check=False)
        self.containerd.stop()
        self.containerd.remove()

    def configuration(self, name: str, /, **values: Value) -> Path:
        """Write NAME.toml: the shipped configuration, fit for this host, with these keys changed."""
        path = self.root / f"{name}.toml"
        path.write_text(shipped_configuration.render(self._values | values), encoding="utf-8")
        return path

    # -- ctr -----------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """An id that no other container on this host has."""
        self._ids.append(f"c{len(self._ids) + 1}-{self.namespace}")
        return self._ids[-1]

    def command(self, *arguments: str | Path) -> list[str]:
        """The argv of a ctr command against this node."""
        return self.containerd.command(["--namespace", self.namespace, *map(str, arguments)])

    def ctr(self, *arguments: str | Path, check: bool = True, stdin: str = "") -> Result:
        """Run ctr to its end; with `check` it must succeed."""
        command = self.command(*arguments)
        result = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_CTR_BUDGET, check=False
        )
        assert result.returncode == 0 or not check, f"{command}: {result.returncode}: {result.stderr}"
        return result

    def run(
        self,
        *command: str,
        container: str = "",
        options: Sequence[str | Path] = (),
        image: str | Path = IMAGE,
        runtime: str = RUNTIME,
        stdin: str = "",
    ) -> Result:
        """`ctr run --rm`: a container from its start to its end."""
        argv = ("run", "--rm", "--runtime", runtime, *options, image, container or self.new_id(), *command)
        return self.ctr(*argv, check=False, stdin=stdin)

    def attended(self, *command: str, options: Sequence[str | Path] = (), rm: bool = False) -> Client:
        """A `ctr run` in the background, which has only been started."""
        container = self.new_id()
        argv = ("run", *(["--rm"] if rm else []), "--runtime", RUNTIME, *options, IMAGE, container, *command)
        return Client(self.command(*argv), container)

    @contextmanager
    def running(self, *command: str, options: Sequence[str | Path] = ()) -> Iterator[Client]:
        """`ctr run` of a container that runs when the block begins, and is deleted after it."""
        client = self.attended(*command, options=options)
        try:
            self.until(
                lambda: self.status(client.container) == "RUNNING" or client.ended, "the container runs"
            )
            assert not client.ended, client.errors
            yield client
        finally:
            self.discard(client.container)
            client.close()

    @contextmanager
    def detached(self, *command: str, options: Sequence[str | Path] = ()) -> Iterator[str]:
        """`ctr run --detach`: a container that nobody attends to; deleted after the block."""
        container = self.new_id()
        self.ctr("run", "--detach", "--runtime", RUNTIME, *options, IMAGE, container, *command)
        try:
            yield container
        finally:
            self.discard(container)

    @contextmanager
    def pod(self, *options: str | Path) -> Iterator[Pod]:
        """A pod: its sandbox container keeps a virtual machine, which further containers share."""
        with self.running(*FOREVER, options=("--annotation", f"{_TYPE}=sandbox", *options)) as client:
            kind, sandbox = f"{_TYPE}=container", f"{_SANDBOX}={client.container}"
            yield Pod(self, client.container, ("--annotation", kind, "--annotation", sandbox))

    def discard(self, container: str) -> None:
        """Kill and delete a container, whatever its state."""
        self.ctr("task", "rm", "--force", container, check=False)
        self.ctr("container", "rm", container, check=False)

    # -- looking -------------------------------------------------------------------------------------------

    def status(self, container: str) -> str | None:
        """The state of a task as `ctr task ls` shows it, None when there is no such task."""
        rows = (line.split() for line in self.ctr("task", "ls").stdout.splitlines()[1:])
        return next((row[2] for row in rows if row[0] == container), None)

    def log(self) -> str:
        """What containerd and the shims have logged."""
        return self.containerd.log_path.read_text(errors="replace")

    def nested_virtualization(self, container: str) -> int:
        """How many processors of a container's guest have virtualization of their own, as it reads them."""
        look = "grep -cE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo; true"
        found = self.ctr("task", "exec", "--exec-id", secrets.token_hex(4), container, "sh", "-c", look)
        return int(found.stdout)

    def sandboxes(self) -> list[str]:
        """Ids of the running sandboxes of this node."""
        return [sandbox.id for sandbox in running_sandboxes() if self._owns(sandbox)]

    def _owns(self, sandbox: RecordedSandbox) -> bool:
        # Every node with the CRI has the namespace k8s.io: only containerd's address tells them apart.
        identity = SandboxIdentity(str(self.containerd.address), self.namespace, sandbox.id)
        return identity.directory == sandbox.directory

    def leftovers(self) -> Leftovers:
        """The state of the host now, to compare with later."""
        address, namespace = str(self.containerd.address), self.namespace
        return Leftovers(
            self.root,
            namespace,
            lambda: [SandboxIdentity(address, namespace, name) for name in self._ids],
        )

    def pids(self, sandbox: str) -> dict[str, int]:
        """The processes of a sandbox by their role."""
        found = next(one for one in running_sandboxes() if one.id == sandbox)
        # Of virtiofsd's two, the one that was started: the first.
        return {process.name: process.pid for process in reversed(found.processes)}

    def kill(self, sandbox: str, role: str) -> None:
        """SIGKILL to one of a sandbox's processes; returns when it is dead."""
        pid = self.pids(sandbox)[role]
        assert processes.end(pid, processes.start_time(pid))

    def until(self, condition: Callable[[], object], what: str, budget: float = PATIENCE) -> None:
        """Wait until a condition holds; fail when it does not within the budget, in seconds."""
        deadline = time.monotonic() + budget
        while not condition():
            assert time.monotonic() < deadline, f"not within {budget:g} s: {what}"
            time.sleep(0.05)


class Pod:
    """A running sandbox on a node. options: what makes a container one of it."""

    def __init__(self, node: Node, sandbox: str, options: Sequence[str]) -> None:
        self.node = node
        self.sandbox = sandbox
        self.options = tuple(options)

    def run(self, *command: str, options: Sequence[str | Path] = (), **named: Any) -> Result:
        """`Node.run` in this pod."""
        return self.node.run(*command, options=(*self.options, *options), **named)

    @contextmanager
    def running(self, *command: str, options: Sequence[str | Path] = ()) -> Iterator[Client]:
        """`Node.running` in this pod."""
        with self.node.running(*command, options=(*self.options, *options)) as client:
            yield client


class Client:
    """A ctr in the background, and what it has written so far. container: the one that it attends to."""

    def __init__(self, command: Sequence[str], container: str = "") -> None:
        self.container = container
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err
        )

    @property
    def output(self) -> str:
        """What it wrote to standard output: of `run` and `attach`, what the container wrote."""
        return _read(self._out)

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return _read(self._err)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def wait(self, budget: float = PATIENCE) -> int:
        """Its exit status, within so many seconds."""
        return self._process.wait(budget)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._err.close()


class Events:
    """What `ctr events` tells, from the moment when it is entered."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._client = Client(node.command("events"))

    def __enter__(self) -> Events:
        # It does not say from when on it listens: something must happen until it receives one.
        def is_received() -> str:
            self._node.ctr("namespaces", "label", self._node.namespace, f"received={time.monotonic_ns()}")
            return self._client.output

        self._node.until(is_received, "an event")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def of(self, container: str) -> list[tuple[str, dict[str, Any]]]:
        """The events of a container's task in their order: topic, without its prefix, and content."""
        found = []
        for line in self._client.output.splitlines():
            match = re.search(r" /tasks/(\S+) (\{.*)", line)
            if match and (event := json.loads(match[2])).get("container_id") == container:
                found.append((match[1], event))
        return found


def _read(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
