"""A node to run unikernels on: a containerd of its own, our shim, and images that are compiled here."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from kata_runtime.ctl.shim import NAMES, install_launcher
from kata_runtime.identity import SandboxIdentity
from patience import PATIENCE
from private_containerd import PrivateContainerd
from unikernel_image import write_image

RUNTIME = "io.containerd.kata.v2"
BUDGET = PATIENCE

TABLE = 'kernel = ""\n'  # a unikernel brings its own

CONFIGURATION = """\
[hypervisor.{name}]
{table}
[agent.kata]

[runtime]
hypervisor_name = "{name}"
"""


class UnikernelNode:
    """One containerd whose containers are unikernels. environment: more of containerd's and its shims'."""

    def __init__(
        self, name: str = "dragonball", table: str = TABLE, environment: Mapping[str, str] | None = None
    ) -> None:
        self.root = Path("/run") / f"ku{secrets.token_hex(3)}"  # short, for the paths of sockets below it
        self.root.mkdir(mode=0o700)
        shims = self.root / "bin"
        shims.mkdir()
        for launcher in NAMES:
            install_launcher(shims / launcher)
        configuration = self.root / "configuration.toml"
        configuration.write_text(CONFIGURATION.format(name=name, table=table), encoding="utf-8")
        self.containerd = PrivateContainerd(
            self.root / "data",
            self.root,
            shim_directory=shims,
            environment={"KATA_CONF_FILE": str(configuration), **(environment or {})},
        )
        self.containerd.start()
        self._count = 0

    def close(self) -> None:
        """End containerd, and what a failed test left on it."""
        for word in self.ctr("task", "ls", "-q").stdout.split():
            self.ctr("task", "rm", "--force", word)
        self.containerd.stop()
        self.containerd.remove()

    def add_image(self, name: str, unikernel: Path, files: Mapping[str, bytes] | None = None) -> str:
        """Import an image with this unikernel; returns its reference."""
        archive = self.root / "image.tar"
        reference = f"localhost/{name}:1"
        write_image(archive, unikernel, reference, files)
        assert self.ctr("image", "import", str(archive)).returncode == 0
        archive.unlink()
        return reference

    def ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ctr to its end."""
        command = self.containerd.command(list(arguments))
        return subprocess.run(command, capture_output=True, text=True, timeout=BUDGET, check=False)

    def vmm(self, container: str) -> int:
        """The process id of a container's VMM, as `ctr task ps` shows it."""
        _, row = self.ctr("task", "ps", container).stdout.splitlines()
        return int(row.split()[0])

    def new_id(self) -> str:
        """An id that no container of this node has."""
        self._count += 1
        return f"u{self._count}"

    def run(
        self,
        image: str,
        *command: str,
        annotations: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """`ctr run --rm`: a unikernel from its start to its end, of which nothing is left."""
        container = self.new_id()
        pairs = [f"{key}={value}" for key, value in (annotations or {}).items()]
        given = [word for pair in pairs for word in ("--annotation", pair)]
        arguments = ["run", "--rm", "--runtime", RUNTIME, *given, *options, image, container, *command]
        result = self.ctr(*arguments)
        assert self.nothing_left(container)
        return result

    def nothing_left(self, container: str) -> bool:
        """Whether the sandbox's directory goes away, in good time."""
        directory = SandboxIdentity(str(self.containerd.address), "default", container).directory
        deadline = time.monotonic() + 10
        while os.path.exists(directory) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not os.path.exists(directory)
