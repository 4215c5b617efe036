"""A zygote for tests: on a socket of its own, which it is given as systemd gives one."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kata_runtime.ctl.shim import module_roots, program_text
from kata_runtime.ctl.zygote import MODULE, PATH
from patience import PATIENCE

SUPPORT = Path(__file__).resolve().parent


# sd_listen_fds(3): the descriptor is 3, and LISTEN_PID names who may take it.
_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
kept = {name: os.environ[name] for name in ("PATH", "KATA_CONF_FILE") if name in os.environ}
passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **kept}
os.execve(sys.argv[2], sys.argv[2:], passed)
"""


class Zygote:
    """A zygote process. patch: code that its program runs first. configuration: the one in force."""

    def __init__(self, patch: str = "", configuration: Path | None = None) -> None:
        directory = self._directory = Path(tempfile.mkdtemp(prefix="zygote-test-", dir="/run"))
        self.socket = directory / "zygote.sock"
        self.log = directory / "zygote.log"
        self._program = directory / "kata-zygote"
        text = program_text(sys.executable, module_roots(), MODULE, "a test")
        self._program.write_text(patched(text, patch))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.socket))
        self._listener.listen(8)
        self.process = self._start(configuration)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _start(self, configuration: Path | None) -> subprocess.Popen[bytes]:
        number = str(self._listener.fileno())
        python = [sys.executable, "-IS"]
        command = [*python, "-c", _AS_SYSTEMD, number, *python, str(self._program)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH, **({"KATA_CONF_FILE": str(configuration)} if configuration else {})},
                pass_fds=(int(number),),
                start_new_session=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        """What containerd has to have in its environment to ask this one."""
        return {"KATA_ZYGOTE": str(self.socket)}

    def ask(self, message: bytes) -> bytes:
        """One message, and its answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.socket))
            connection.send(message)
            return connection.recv(1 << 16)

    def _wait(self) -> None:
        """Wait until it serves."""
        while self._status().returncode:
            assert self.process.poll() is None, self.log.read_text()

    def _status(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-IS", str(self._program), "status"]
        environment = {"PATH": PATH, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def report(self) -> dict[str, Any]:
        """What it says of itself."""
        self._wait()
        report: dict[str, Any] = json.loads(self._status().stdout)
        return report

    def kill(self) -> None:
        """End it as a fault would."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, and its socket."""
        self.kill()
        self._listener.close()
        shutil.rmtree(self._directory)


def patched(program: str, patch: str) -> str:
    """A program's text with a patch before its last line; `tests/support` is on its path."""
    lines = program.rstrip().splitlines()
    # After the others: where modules come from names the installation.
    return "\n".join([*lines[:-1], patch, lines[-1], ""])


def await_file(path: Path) -> str:
    """A file's text, when it is there."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.02)
    return path.read_text()


def state_patch() -> str:
    """The patch that has each shim write its state; see `shim_state`."""
    load = f'importlib.util.spec_from_file_location("shim_state", {str(SUPPORT / "shim_state.py")!r})'
    return "\n".join(
        [
            "import importlib.util",
            f"spec = {load}",
            "shim_state = importlib.util.module_from_spec(spec)",
            "spec.loader.exec_module(shim_state)",
            "shim_state.install()",
        ]
    )
