"""A containerd of one's own: own root, state, socket and shim directory; the system's is never touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CONFIG = """\
version = {version}
root = "{root}"
state = "{state}"
disabled_plugins = [{disabled}]

[grpc]
  address = "{address}"

[debug]
  level = "info"
{extra}"""

_CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images")
_UNUSED = (
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.btrfs",
)


class ContainerdError(RuntimeError):
    """containerd could not be started or ended before it answered."""


class PrivateContainerd:
    """One containerd process below `directory` (data) and `run_directory` (sockets, state: short paths)."""

    def __init__(
        self,
        directory: Path,
        run_directory: Path,
        *,
        shim_directory: Path,
        environment: Mapping[str, str],
        containerd: str = "containerd",
        ctr: str = "ctr",
        cri: bool = False,
        extra_config: str = "",
    ) -> None:
        self.directory = directory
        self.run_directory = run_directory
        self.address = run_directory / "containerd.sock"
        self.log_path = directory / "containerd.log"
        self._containerd = containerd
        self._ctr = ctr
        self._cri = cri
        self.extra_config = extra_config
        self._environment = {
            "PATH": f"{shim_directory}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, budget: float = 30.0) -> None:
        """Start it and wait, at most `budget` seconds, until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.run_directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.toml"
        config.write_text(self._config())
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self._containerd, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        deadline = time.monotonic() + budget
        while self.run(["version"], check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self.log_path.read_text(errors="replace").splitlines()[-5:]
                raise ContainerdError(
                    f"containerd did not come up; the end of {self.log_path}:\n" + "\n".join(lines)
                )
            time.sleep(0.05)

    def _config(self) -> str:
        disabled = [*_UNUSED, *(() if self._cri else _CRI)]
        return CONFIG.format(
            version=2,
            root=self.directory / "root",
            state=self.run_directory / "state",
            address=self.address,
            disabled=", ".join(f'"{name}"' for name in disabled),
            extra=self.extra_config,
        )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; its shims live on."""
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait()
        self._process = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The argv of a ctr command against this containerd."""
        return [self._ctr, "--address", str(self.address), *arguments]

    def run(
        self, arguments: Sequence[str], *, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run ctr and collect what it prints."""
        return subprocess.run(
            self.command(arguments),
            check=check,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def remove(self) -> None:
        """Delete everything of a stopped containerd."""
        for place in (self.directory, self.run_directory):
            _unmount_below(place)
            shutil.rmtree(place, ignore_errors=True)


def _unmount_below(place: Path) -> None:
    """A killed containerd may leave mounts; deleting through them would delete somebody's data."""
    prefix = f"{place}{os.sep}"
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((p for p in points if p.startswith(prefix)), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
