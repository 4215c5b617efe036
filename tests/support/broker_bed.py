"""Sandboxes for the broker's tests: identities under a short path, and shims that can be killed."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kata_runtime import identity as identity_module
from kata_runtime.broker import messages, rollback
from kata_runtime.broker.process import fork_broker
from kata_runtime.identity import SandboxIdentity


class Bed:
    """One sandbox's identity, its bundle, and a directory for the test's own files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = root / "bundle"
        (self.bundle / "rootfs").mkdir(parents=True)
        self.data = root / "data"
        self.data.mkdir()
        self.identity = SandboxIdentity("/run/test.sock", "test", "sandbox", socket_root=str(root))

    @property
    def directory(self) -> Path:
        return Path(self.identity.directory)

    @property
    def shared(self) -> str:
        return str(self.directory / "shared")

    @property
    def journal(self) -> Path:
        return self.directory / rollback.NAME


@contextmanager
def make_bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    """A bed that is gone afterwards; it must be empty of sandboxes by then."""
    root = Path(tempfile.mkdtemp(prefix="kb-"))
    (root / "state").mkdir(mode=0o711)
    monkeypatch.setattr(identity_module, "STATE_ROOT", str(root / "state"))
    try:
        yield Bed(root)
        assert not list((root / "state").glob("*")), "the sandbox's directory is left"
    finally:
        shutil.rmtree(root)


def ask(channel: socket.socket, op: str, **arguments: object) -> dict[str, Any]:
    """One request over a blocking socket, without the client; notices in between are passed over."""
    messages.send(channel, messages.encode({"id": 1, "op": op, **arguments}))
    while True:
        message, received = messages.receive(channel)
        messages.close_all(received)
        if "id" in message:
            return message


class Shim:
    """A process that plays the shim: it forks a broker, runs `act` with the socket to it, and then waits."""

    def __init__(self, bed: Bed, act: Callable[[socket.socket], object], *, namespace: bool) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(read)
                channel, broker = fork_broker(bed.identity, str(bed.bundle), namespace=namespace)
                os.write(write, messages.encode({"broker": broker, "result": act(channel)}))
                os.close(write)
                signal.pause()
            finally:
                os._exit(1)
        os.close(write)
        with open(read, "rb") as pipe:
            report = messages.decode(pipe.read())
        self.broker: int = report["broker"]
        self.result: Any = report["result"]

    def kill(self) -> None:
        """SIGKILL, and no chance to say goodbye."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def wait_for_end(pid: int, seconds: float = 20) -> None:
    """Return once a process that is not ours has exited, be it as a zombie."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], seconds)[0], f"process {pid} does not end"
    finally:
        os.close(handle)
