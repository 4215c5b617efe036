"""A node to test on: a containerd of its own, our shim, a small container image, and ctr."""

from __future__ import annotations

import itertools
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import busybox_image
import shipped_configuration
from containerd_versions import Programs
from kata_runtime.broker import processes
from kata_runtime.ctl.shim import NAMES, install_launcher
from kata_runtime.sandboxes import running_sandboxes
from private_containerd import PrivateContainerd
from shipped_configuration import Value

RUNTIME = "io.containerd.kata.v2"
IMAGE = busybox_image.NAME
FOREVER = ("sleep", "3600")

_TYPE = "io.kubernetes.cri.container-type"
_SANDBOX = "io.kubernetes.cri.sandbox-id"

Result = subprocess.CompletedProcess[str]


class Node:
    """One containerd and what runs on it. image: directory of the guest image."""

    def __init__(self, programs: Programs, image: Path) -> None:
        self.programs = programs
        # Short, because the paths of sockets below it may have 107 bytes only; root's alone, because the
        # shim takes a configuration from its environment only if nobody else could have changed it.
        self.root = Path(tempfile.mkdtemp(prefix="kt-", dir="/run"))
        self.namespace = self.root.name
        self._values = shipped_configuration.for_image(image)
        self._numbers = itertools.count(1)
        shims = self.root / "bin"
        shims.mkdir()
        for name in NAMES:
            install_launcher(shims / name)
        self.containerd = PrivateContainerd(
            self.root / "data",
            self.root,
            shim_directory=shims,
            environment={"KATA_CONF_FILE": str(self.configuration("default"))},
            containerd=str(programs.containerd),
            ctr=str(programs.ctr),
        )

    def start(self) -> None:
        """Start containerd and import the container image."""
        self.containerd.start()
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory) / "image.tar"
            busybox_image.write_image(archive)
            self.ctr("image", "import", str(archive))

    def close(self) -> None:
        """End containerd, and whatever a failed test left running on it."""
        for sandbox in self.sandboxes():
            self.ctr("task", "rm", "--force", sandbox, check=False)
        self.containerd.stop()
        self.containerd.remove()

    # -- configuration -------------------------------------------------------------------------------------

    def configuration(self, name: str, /, **values: Value) -> Path:
        """Write NAME.toml: the shipped configuration with these keys changed."""
        path = self.root / f"{name}.toml"
        path.write_text(shipped_configuration.render(self._values | values), encoding="utf-8")
        return path

    # -- ctr -----------------------------------------------------------------------------------------------

    def new_id(self, stem: str = "c") -> str:
        """An id that no container on this host has."""
        return f"{stem}{next(self._numbers)}-{self.namespace}"

    def command(self, *words: str | Path) -> list[str]:
        """The words of a ctr command against this node."""
        return self.containerd.command(["--namespace", self.namespace, *map(str, words)])

    def ctr(self, *words: str | Path, check: bool = True, stdin: str | None = None) -> Result:
        """Run ctr to its end; what it wrote is shown when it fails and `check` is asked for."""
        command = self.command(*words)
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, **given)  # type: ignore[call-overload]
        assert result.returncode == 0 or not check, (
            f"{command}: {result.returncode}: {result.stderr or result.stdout}"
        )
        return result

    def run(
        self,
        *command: str,
        id: str | None = None,  # noqa: A002
        options: Sequence[str | Path] = (),
        image: str | Path = IMAGE,
        runtime: str = RUNTIME,
    ) -> Result:
        """`ctr run --rm`: a container in a virtual machine of its own, from its start to its end."""
        return self.ctr(
            "run", "--rm", "--runtime", runtime, *options, image, id or self.new_id(), *command, check=False
        )

    @contextmanager
    def running(self, *command: str, options: Sequence[str | Path] = (), pod: str = "") -> Iterator[Client]:
        """`ctr run` of a container that is running in the block, and deleted after it."""
        container = self.new_id()
        client = Client(
            self, self.command("run", "--runtime", RUNTIME, *options, IMAGE, container, *command), container
        )
        try:
            self.until(lambda: self.status(container) == "RUNNING" or client.ended, what="the container")
            assert not client.ended, client.errors
            yield client
        finally:
            self.discard(container)
            client.close()

    @contextmanager
    def pod(self, *options: str | Path) -> Iterator[Pod]:
        """A pod: its sandbox container keeps a virtual machine, further containers share it."""
        with self.running(*FOREVER, options=("--annotation", f"{_TYPE}=sandbox", *options)) as client:
            belonging = (f"{_TYPE}=container", f"{_SANDBOX}={client.container}")
            yield Pod(self, client.container, [word for one in belonging for word in ("--annotation", one)])

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

    def sandboxes(self) -> list[str]:
        """Ids of the running sandboxes of this node."""
        return [sandbox.id for sandbox in running_sandboxes() if sandbox.namespace == self.namespace]

    def processes(self, sandbox: str) -> dict[str, int]:
        """The pids of a sandbox's processes by their role."""
        found = next(one for one in running_sandboxes() if one.id == sandbox)
        return {process.name: process.pid for process in found.processes}

    def until(self, condition: Callable[[], object], budget: float = 60.0, what: str = "it") -> None:
        """Wait until a condition holds; fail when it does not within the budget, in seconds."""
        deadline = time.monotonic() + budget
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come within {budget:g} s"
            time.sleep(0.05)

    def kill(self, sandbox: str, role: str) -> None:
        """SIGKILL to one of a sandbox's processes, and wait until it is dead."""
        pid = self.processes(sandbox)[role]
        assert processes.end(pid, processes.start_time(pid))


class Client:
    """A ctr in the background, and what it has written so far. container: the one that it attends to."""

    def __init__(self, command: Sequence[str], container: str = "", *, piped: bool = False) -> None:
        self.container = container
        self._out = tempfile.TemporaryFile()
        self._err = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    @property
    def output(self) -> str:
        """What it wrote to standard output: for `run` and `attach`, what the container did."""
        return _read(self._out)

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return _read(self._err)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def wait(self, budget: float = 60.0) -> int:
        """Its exit status, within so many seconds."""
        return self._process.wait(budget)

    def write(self, text: str) -> None:
        """Give it something on standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """End it; idempotent."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._out.close()
        self._err.close()


class Pod:
    """A running sandbox. options: what makes a container one of it."""

    def __init__(self, node: Node, sandbox: str, options: Sequence[str]) -> None:
        self.node = node
        self.sandbox = sandbox
        self.options = tuple(options)

    def run(self, *command: str, options: Sequence[str | Path] = (), **named: Any) -> Result:
        """`ctr run --rm` of a container in this pod."""
        return self.node.run(*command, options=(*self.options, *options), **named)


class Events:
    """What `ctr events` tells of one container, from now on."""

    def __init__(self, node: Node) -> None:
        self._client = Client(node.command("events"))

    def of(self, container: str) -> list[tuple[str, dict[str, Any]]]:
        """Topics, without their prefix, and contents of the container's events in their order."""
        found = []
        for line in self._client.output.splitlines():
            match = re.search(r" /tasks/(\S+) (\{.*)", line)
            if match and (event := json.loads(match[2])).get("container_id") == container:
                found.append((match[1], event))
        return found

    def close(self) -> None:
        """Stop listening."""
        self._client.close()


def _read(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")
