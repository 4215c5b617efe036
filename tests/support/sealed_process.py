"""An interpreter of its own that seals itself, and the supervisor of its seal."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from kata_hypervisor.seccomp import notification, syscalls

_ROOMS = ("configuration", "agent", "hypervisor", "runtime")
_BEFORE = """
import os, signal, socket, sys, threading, time
from kata_runtime.pod import preload
preload.load()
from kata_hypervisor.seccomp import seal

def start(target, *args):
    thread = threading.Thread(target=target, args=args)
    thread.start()
    return thread

def seal_now():
    listener = SEAL.install()
    socket.send_fds(CHANNEL, [b"sealed"], [listener])
    CHANNEL.recv(16)

# As the shim does. An interpreter that ends resets its own handler, which takes a call that no shim makes.
signal.signal(signal.SIGINT, signal.SIG_IGN)
CHANNEL = socket.socket(fileno=int(sys.argv[1]))
SEAL = seal.build(sys.argv[2].split(), "enforce")
preload.close()
"""


@dataclass
class Sealed:
    """What became of it. status: as subprocess gives it. blocked: the calls that were refused, by name."""

    status: int = 0
    stdout: str = ""
    stderr: str = ""
    blocked: list[str] = field(default_factory=list)
    sealed: bool = False


def run_sealed(body: str, features: Collection[str]) -> Sealed:
    """Run Python source that calls `seal_now()`; every notification is noted and answered with EPERM.

    In its reach: `start(function, *arguments)` for a thread, and the modules os, signal, socket, sys, time.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root = Path(__file__).parents[2]
    with ours, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-c", _BEFORE + body, str(theirs.fileno()), " ".join(features)],
                stdout=stdout,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                env={"PYTHONPATH": ":".join(str(root / room) for room in _ROOMS)},
            )
        result = Sealed()
        try:
            _, fds, _, _ = socket.recv_fds(ours, 16, 1)
            if fds:
                result.sealed = True
                _supervise(fds[0], ours, result.blocked)
            result.status = child.wait(timeout=60)
        finally:
            child.kill()
            child.wait()
        for name, file in (("stdout", stdout), ("stderr", stderr)):
            file.seek(0)
            setattr(result, name, file.read().decode())
    return result


def _supervise(listener: int, channel: socket.socket, blocked: list[str]) -> None:
    channel.send(b"go")
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    try:
        while True:
            ((_, events),) = poller.poll(60_000) or ((0, select.POLLHUP),)
            if events & select.POLLIN and (call := notification.receive(listener)) is not None:
                blocked.append(syscalls.name_of(call.number) or str(call.number))
                notification.refuse(listener, call, errno.EPERM)
            elif events & select.POLLHUP:
                return
    finally:
        os.close(listener)
